"""Hidden units of recurrent layers and cells: which can go, and that what is smaller computes the same."""

import copy
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.optim import AdamW

from shrinkage import CoupledChannels, GroupError, GroupLasso, Regularizer, shrink, shrink_optimizer_
from shrinkage.compression.plans.tensors import cut
from shrinkage.compression.tracing.coupling import couple
from zoo.dense import CASES

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
TWO, BOTH = {"num_layers": 2}, {"bidirectional": True}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Reader(nn.Module):
    """A recurrent layer of 9 units whose outputs, or last states, are read."""

    def __init__(self, kind, part="outputs", **options):
        super().__init__()
        self.part, self.width = part, options.get("proj_size", 9) * (2 if options.get("bidirectional") else 1)
        self.rnn = kind(4, 9, **{"batch_first": True} | options)
        self.head = nn.Linear(self.width, 3)

    def forward(self, x, lengths=None):
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, self.rnn.batch_first, enforce_sorted=False)
        outputs, states = self.rnn(x)
        if lengths is not None:
            outputs, _ = pad_packed_sequence(outputs, self.rnn.batch_first)
        states = states[0] if isinstance(states, tuple) else states
        if self.part == "last":
            return self.head(torch.cat((states[-2], states[-1, :, :]), 1) if self.rnn.bidirectional else states[-1])
        if self.part == "by layer":
            last = states.view(self.rnn.num_layers, -1, *states.shape[1:])[-1]
            return self.head(torch.cat((last[0], last[1]), -1))
        if self.part == "stacked":
            return self.head(states.transpose(0, 1).reshape(states.shape[1], -1)[:, -self.width :])
        return self.head(outputs[:, -1] if self.part == "at the end" else outputs)


@torch.no_grad()
def silence_(layer, *units, gate=2):
    """Make one gate's rows zero, the candidate's if not told; in each layer and direction those of `units` in turn."""
    for name, parameter in layer.named_parameters():
        if "hr" not in name:
            blocks = parameter.view(-1, layer.hidden_size, *parameter.shape[1:])
            number = 2 * int(name.partition("_l")[2][:1] or 0) + name.endswith("reverse")
            blocks[gate if len(blocks) > 1 else 0, list(units[number % len(units)])] = 0


@torch.no_grad()
def difference(model, small, *call):
    expected, found = model.eval()(*call), small.eval()(*call)
    assert expected.shape == found.shape
    return float((expected - found).abs().max() / expected.abs().max())


def made(build, seed=0):
    torch.manual_seed(seed)
    return build().double().eval()


def steps(*shape):
    return torch.randn(*shape, 4, dtype=torch.double)


KINDS = [
    (nn.LSTM, "outputs", {}, 9),
    (nn.GRU, "last", {"bias": False}, 9),
    (nn.RNN, "at the end", {"nonlinearity": "relu"}, 9),
    (nn.RNN, "last", TWO | BOTH | {"dropout": 0.5}, 36),
    (nn.LSTM, "last", TWO | BOTH, 36),
    (nn.GRU, "outputs", TWO | BOTH | {"batch_first": False}, 36),
    (nn.LSTM, "by layer", TWO | BOTH, 36),
    (nn.LSTM, "at the end", TWO | BOTH | {"proj_size": 5}, 36 + 20),
    (nn.LSTM, "outputs", {"proj_size": 5, "bias": False}, 9 + 5),
]


@pytest.mark.parametrize(("kind", "part", "options", "count"), KINDS)
def test_silent_units_go(kind, part, options, count):
    model = made(lambda: Reader(kind, part, **options))
    channels = CoupledChannels(model, steps(3, 5))
    assert channels.count == count
    silence_(model.rnn, (1, 4, 6), (0, 4, 8), (5, 6, 7), (2, 3, 4))
    result = shrink(model, steps(3, 5))
    assert result.model.rnn.hidden_size == 6
    assert result.report.kept == ()
    for call in (steps(2, 11), steps(1, 3), steps(5, 1)):
        assert difference(model, result.model, call) < 1e-13
    if part == "outputs":
        assert difference(model, result.model, steps(7, 7), LENGTHS) < 1e-13


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("gate", [0, 1, 3])
def test_no_other_gate_makes_a_unit_silent(kind, gate):
    model = made(lambda: Reader(kind))
    if gate < GATES[kind.__name__]:
        silence_(model.rnn, (1, 4), gate=gate)
    with torch.no_grad():
        model.rnn.bias_hh_l0[:] += 0.5  # the candidate's too: of a GRU it is let in beside the other one
    silence_(model.rnn, (), gate=2)
    model.rnn.weight_ih_l0.data.view(-1, 9, 4)[2, 7] = 0
    model.rnn.weight_hh_l0.data.view(-1, 9, 9)[2, 7] = 0
    model.rnn.bias_ih_l0.data.view(-1, 9)[2, 7] = 0
    result = shrink(model, steps(3, 5))
    assert result.model.rnn.hidden_size == 9
    assert [(kept.name, kept.channels) for kept in result.report.kept] == [("rnn.weight_ih_l0", 1)]


def test_a_group_is_the_candidate_alone():
    """Its other gates have no gradient once it is zero."""
    model = made(lambda: Reader(nn.LSTM))
    channels = CoupledChannels(model, steps(3, 5))
    groups = {member.parameter: member.groups for member in channels.members}
    expected = (-1,) * 18 + tuple(range(9)) + (-1,) * 9
    assert groups == dict.fromkeys(
        ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"), expected
    )


def test_units_go_by_training():
    model = made(lambda: Reader(nn.GRU, "last"))
    optimizer, x = AdamW(model.parameters(), lr=0.02), steps(8, 5)
    regularizer = Regularizer(model, GroupLasso(0.3, CoupledChannels(model, x))).attach(optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        (model(x) - x.sum((1, 2))[:, None]).square().mean().backward()
        optimizer.step()
    regularizer.detach()
    result = shrink(model, x)
    assert result.model.rnn.hidden_size < 9
    assert difference(model, result.model, steps(4, 9)) < 1e-13


def trained(model, optimizer, seed):
    torch.manual_seed(seed)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(steps(4, 6)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_training_goes_on(kind):
    """Units that are silent, and that nobody reads, have no gradients: the dense model is the smaller one."""
    model, units = made(lambda: Reader(kind, **TWO)), (1, 4)
    silence_(model.rnn, units)
    with torch.no_grad():
        for weight in (model.rnn.weight_hh_l0, model.rnn.weight_ih_l1, model.rnn.weight_hh_l1, model.head.weight):
            weight[:, units] = 0
    optimizer = AdamW(model.parameters(), lr=0.01)
    trained(model, optimizer, 1)
    dense = copy.deepcopy(model)
    of_dense = AdamW(dense.parameters(), lr=0.01)
    of_dense.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    result = shrink(model, steps(3, 5))
    shrink_optimizer_(optimizer, result.plan, model, result.model)
    trained(dense, of_dense, 2)
    trained(result.model, optimizer, 2)
    assert result.model.rnn.hidden_size == 7
    for name, tensor in result.model.state_dict().items():
        expected = cut(dense.state_dict()[name], result.plan.keep.get(name, {}))
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-12)


def test_a_plan_in_a_fresh_process(tmp_path):
    model = next(case for case in CASES if case.name == "lstm").make().double().eval()
    silence_(model.lstm, (1, 4))
    x = torch.randn(2, 7, 12, dtype=torch.double)
    result = shrink(model, torch.randn(2, 5, 12, dtype=torch.double))
    torch.save((result.plan.to_json(), result.model.state_dict(), x, result.model(x)), tmp_path / "small.pt")
    code = f"""
        import torch
        from zoo.dense import CASES
        from shrinkage import ShrinkPlan, apply_plan
        plan, state, x, expected = torch.load({str(tmp_path / "small.pt")!r}, weights_only=True)
        (build,) = (case.build for case in CASES if case.name == "lstm")
        model = apply_plan(build().double(), ShrinkPlan.from_json(plan)).eval()
        model.load_state_dict(state)
        assert model.lstm.hidden_size == 8 and torch.equal(model(x), expected)
    """
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120, env=os.environ | path)


def test_the_least_goes_of_layers_with_unlike_numbers_of_silent_units():
    model = made(lambda: Reader(nn.LSTM, "last", **TWO, **BOTH))
    silence_(model.rnn, (1, 4, 6), (0, 4), (5, 6, 7, 8), (2, 3, 4))
    result = shrink(model, steps(3, 5))
    assert result.model.rnn.hidden_size == 7
    assert difference(model, result.model, steps(2, 9)) < 1e-13
    reason = "stays so that all layers and directions of `rnn` have as many units"
    names = ("weight_ih_l0", "weight_ih_l1", "weight_ih_l1_reverse")
    assert [(kept.name, kept.channels, kept.reason) for kept in result.report.kept] == [
        (f"rnn.{name}", count, reason) for name, count in zip(names, (1, 2, 1), strict=True)
    ]


def test_states_that_are_read_as_one_tensor_lose_the_same_units():
    model = made(lambda: Reader(nn.GRU, "stacked", **BOTH))
    silence_(model.rnn, (1, 4), (4, 7))
    result = shrink(model, steps(3, 5))
    assert result.model.rnn.hidden_size == 8
    assert difference(model, result.model, steps(2, 9)) < 1e-13


class WithState(nn.Module):
    """Layers that start at a state that the caller gives, that the code makes, or that is learned."""

    def __init__(self, kind, start):
        super().__init__()
        self.start, self.hidden, self.twice = start, 9, 18
        self.rnn, self.head = kind(4, 9, 2, batch_first=True), nn.Linear(9, 3)
        self.first = nn.Parameter(torch.randn(2, 1, 9)) if start == "learned" else None

    def forward(self, x, state=None):
        if self.start == "computed":
            state = torch.zeros(2, len(x), self.twice // 2, dtype=x.dtype)
        elif self.start == "new":
            state = self.head.weight.data.new(2, len(x), self.hidden).zero_()
        elif self.start == "zeros":
            state = torch.zeros(2, len(x), self.hidden, dtype=x.dtype).to(x.device)
        elif self.start == "learned":
            state = self.first.expand(-1, len(x), -1).contiguous()
        outputs, _ = self.rnn(x, (state, state.clone()) if isinstance(self.rnn, nn.LSTM) else state)
        return self.head(outputs.contiguous().view(-1, outputs.shape[-1]))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_first_state_that_is_not_zero_holds_units(kind):
    model = made(lambda: WithState(kind, "given"))
    silence_(model.rnn, (1, 4))
    result = shrink(model, (steps(3, 5), torch.randn(2, 3, 9, dtype=torch.double)))
    assert result.model.rnn.hidden_size == 9
    assert {kept.reason for kept in result.report.kept} == {"meets a tensor of fixed length, in `rnn`"}
    model = made(lambda: WithState(kind, "learned"))
    silence_(model.rnn, (1, 4))
    assert shrink(model, steps(3, 5)).model.rnn.hidden_size == 9
    model.first.data[..., 1] = 0
    result = shrink(model, steps(3, 5))
    assert result.model.rnn.hidden_size == 8
    assert difference(model, result.model, steps(2, 9)) < 1e-13


@pytest.mark.parametrize("start", ["zeros", "new", "computed"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_zeros_that_the_code_makes_are_a_first_state_like_the_layers_own(kind, start):
    model = made(lambda: WithState(kind, start))
    silence_(model.rnn, (1, 4), (), (5, 6))
    result = shrink(model, steps(3, 5))
    assert result.model.rnn.hidden_size == 7
    assert difference(model, result.model, steps(2, 9)) < 1e-13


class Stepping(nn.Module):
    """A layer that puts out its last states beside the outputs, for the next call, or keeps them in a buffer."""

    def __init__(self, kind, keeps):
        super().__init__()
        self.first, self.rnn, self.head = nn.Linear(4, 8), kind(8, 9, batch_first=True), nn.Linear(9, 3)
        self.keeps = keeps
        self.register_buffer("last", torch.zeros(1, 2, 9))

    def forward(self, x):
        outputs, states = self.rnn(self.first(x).relu())
        if self.keeps:
            self.last.copy_(states)
        return self.head(outputs) if self.keeps else (self.head(outputs), states)


@pytest.mark.parametrize(("kind", "keeps"), [(nn.LSTM, False), (nn.GRU, False), (nn.GRU, True)])
def test_states_that_are_put_out_hold_units_and_nothing_else(kind, keeps):
    model = made(lambda: Stepping(kind, keeps))
    coupling = couple(model, steps(2, 5))
    rows = coupling.axes["head.weight", 0].tolist()
    assert {coupling.pinned.get(root) for root in rows} == {"an output of the model"}
    with torch.no_grad():
        model.first.weight[:3] = model.first.bias[:3] = 0
    silence_(model.rnn, (1, 4))
    small = shrink(model, steps(2, 5)).model
    assert (small.rnn.input_size, small.rnn.hidden_size) == (5, 7 if keeps else 9)
    x = steps(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))
        if keeps:
            assert small.last.shape == (1, 2, 7)
            assert small.last.abs().max() > 0.1


class Translator(nn.Module):
    """A decoder that starts where an encoder ends."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = (nn.LSTM(4, 9, 2, batch_first=True) for _ in range(2))
        self.head = nn.Linear(9, 3)

    def forward(self, x, y):
        return self.head(self.decoder(y, self.encoder(x)[1])[0])


def test_a_decoder_loses_the_units_of_its_encoder():
    model = made(Translator)
    call = steps(3, 5), steps(3, 4)
    assert CoupledChannels(model, call).count == 18
    silence_(model.encoder, (1, 4, 6), (), (2, 3, 5))
    silence_(model.decoder, (4, 6, 7), (), (2, 3, 8))
    result = shrink(model, call)
    assert (result.model.encoder.hidden_size, result.model.decoder.hidden_size) == (7, 7)
    assert difference(model, result.model, steps(2, 7), steps(2, 9)) < 1e-13


class Loop(nn.Module):
    """A loop over two cells, the second of which reads the first."""

    def __init__(self, kind, *, given=False):
        super().__init__()
        self.cells = nn.ModuleList([kind(4, 9), nn.GRUCell(9, 7)])
        self.given, self.head = given, nn.Linear(7, 3)

    def forward(self, x):
        first, second = self.cells
        state = below = None
        if self.given:
            below = torch.zeros(len(x), second.hidden_size, dtype=x.dtype)
        for step in x.unbind(1):
            state = first(step, state)
            below = second(state[0] if isinstance(state, tuple) else state, below)
        return self.head(below)


@pytest.mark.parametrize(("kind", "given"), [(nn.LSTMCell, False), (nn.GRUCell, True), (nn.RNNCell, False)])
def test_silent_units_of_cells_go(kind, given):
    model = made(lambda: Loop(kind, given=given))
    assert CoupledChannels(model, steps(3, 4)).count == 9 + 7
    silence_(model.cells[0], (1, 4, 6))
    silence_(model.cells[1], (2, 3))
    result = shrink(model, steps(3, 4))
    assert [cell.hidden_size for cell in result.model.cells] == [6, 5]
    assert result.report.kept == ()
    for call in (steps(2, 11), steps(1, 1)):
        assert difference(model, result.model, call) < 1e-13


@pytest.mark.parametrize("cells", [False, True])
def test_what_is_heard_after_more_steps_than_the_example_has_is_heard(cells):
    """Each unit reads the one before it, and only the first reads the input: the last is zero for eight steps."""
    model = made(lambda: Loop(nn.RNNCell) if cells else Reader(nn.RNN))
    own = model.cells[0] if cells else model.rnn
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parameter.copy_(torch.diag(torch.ones(8), -1) if "weight_hh" in name else torch.zeros(()))
            if "weight_ih" in name:
                parameter[0] = 1
    result = shrink(model, steps(3, 2))
    assert difference(model, result.model, steps(2, 15)) == 0
    assert own.hidden_size == (result.model.cells[0] if cells else result.model.rnn).hidden_size


def test_a_state_that_grows_is_no_constant():
    """The unit's gates and candidate read nothing, but its state is another one at each step."""
    model = made(lambda: Reader(nn.LSTM))
    with torch.no_grad():
        for name, parameter in model.rnn.named_parameters():
            parameter.view(4, 9, -1)[:, 3] = 0.5 * ("bias" in name)
        model.rnn.weight_hh_l0[:, 3] = 0
    result = shrink(model, steps(3, 1))
    assert result.model.rnn.hidden_size == 9
    assert difference(model, result.model, steps(3, 6)) == 0


def test_a_trace_does_not_grow_with_the_number_of_steps():
    model = made(lambda: Reader(nn.LSTM, **TWO, **BOTH))
    counts = {len(couple(model, steps(2, time)).traces[0][0].program.graph.nodes) for time in (3, 500)}
    assert len(counts) == 1


LENGTHS = torch.tensor([7, 2, 5, 1, 7, 3, 4])


@pytest.mark.parametrize(("kind", "part", "options"), [(nn.LSTM, "last", TWO | BOTH), (nn.GRU, "at the end", {})])
def test_code_that_packs_is_followed(kind, part, options):
    model = made(lambda: Reader(kind, part, **options))
    silence_(model.rnn, (1, 4, 6), (0, 4, 8), (5, 6, 7), (2, 3, 4))
    result = shrink(model, (steps(3, 5), torch.tensor([5, 2, 4])))
    assert result.model.rnn.hidden_size == 6
    assert result.report.not_exported == {}
    assert difference(model, result.model, steps(7, 7), LENGTHS) < 1e-13


def test_a_constant_is_none_where_the_padding_is():
    model = made(lambda: Reader(nn.RNN))
    with torch.no_grad():
        for name, parameter in model.rnn.named_parameters():
            parameter[3] = 0.5 * ("bias" in name)
        model.rnn.weight_hh_l0[:, 3] = 0
    result = shrink(model, (steps(3, 5), [5, 5, 5]))
    assert difference(model, result.model, steps(7, 7), LENGTHS) < 1e-13
    assert shrink(model, steps(3, 5)).model.rnn.hidden_size == 8  # without padding it is one


def test_packs_as_inputs_are_told_and_what_to_do():
    model = nn.Sequential(nn.LSTM(4, 9, 2))
    packed = pack_padded_sequence(torch.randn(5, 3, 4), [5, 4, 2])
    with pytest.warns(UserWarning, match="cannot be exported as a whole"), pytest.raises(GroupError):
        CoupledChannels(model, (packed,))
    result = shrink(model, (packed,))
    assert result.report.not_exported[""].startswith("it is given packed sequences")
