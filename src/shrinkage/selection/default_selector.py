"""What a bare penalty applies to: the weight matrices of all layers, but not of norms and embeddings."""

from torch import nn

from shrinkage.distributed.flat_parameters import is_flat_shard
from shrinkage.errors import ParameterError
from shrinkage.penalties.value_objects import ByFields, value_class
from shrinkage.selection.matrices import is_matrix
from shrinkage.selection.named_parameters import NamedParameter

LEFT_ALONE = (nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)


@value_class
class Weights(ByFields):
    """The default selector: weights with two dimensions or more outside of norm and embedding layers.

    That is every `weight`, and the matrices of recurrent and attention layers. One that is tied to an embedding is left
    alone too.
    """

    left_alone: frozenset[int]

    @classmethod
    def of(cls, model: nn.Module) -> "Weights":
        """Return the default selector for `model`."""
        held = (p for m in model.modules() if isinstance(m, LEFT_ALONE) for p in m.parameters(recurse=False))
        return cls(frozenset(map(id, held)))

    def matches(self, candidate: NamedParameter) -> bool:
        """Return whether `candidate` is such a weight."""
        parameter = candidate.parameter
        named = candidate.attribute == "weight" or is_matrix(candidate.attribute)
        if not named or isinstance(candidate.module, LEFT_ALONE):
            return False
        if is_flat_shard(parameter):
            raise ParameterError(
                f"FullyShardedDataParallel has flattened {candidate.name!r}, so that matrices cannot be told from "
                "vectors any more; make the Regularizer before it wraps the model, or name parameters with a glob such "
                'as "*.weight"'
            )
        if parameter is None or nn.parameter.is_lazy(parameter):
            return True
        return parameter.dim() >= 2 and id(parameter) not in self.left_alone
