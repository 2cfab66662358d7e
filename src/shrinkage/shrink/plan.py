import copy
from dataclasses import dataclass
import torch
from torch import nn
from shrinkage.shrink.export import tensors_of
@dataclass(frozen=True)
class ShrinkPlan:
    keep: dict
    biases: tuple = ()
    attributes: dict = None
    @classmethod
    def of(cls, model, keep, biases=(), attributes={}):
        return cls(keep, tuple(biases), dict(attributes))
def apply_plan(model, plan):
    memo={}
    for name,t in tensors_of(model).items():
        if name in plan.keep and id(t) not in memo:
            new=t.detach()
            for d,idx in plan.keep[name].items(): new=new.index_select(d, torch.tensor(idx))
            memo[id(t)] = nn.Parameter(new.clone(), t.requires_grad) if isinstance(t, nn.Parameter) else new.clone()
    m=copy.deepcopy(model, memo)
    for path,mod in m.named_modules():
        w=getattr(mod,'weight',None)
        if isinstance(mod, nn.Linear): mod.out_features,mod.in_features=w.shape
        if isinstance(mod, nn.Conv2d):
            g=mod.groups
            if g>1: mod.groups=g*w.shape[0]//mod.out_channels
            mod.out_channels=w.shape[0]; mod.in_channels=w.shape[1]*mod.groups
        if isinstance(mod, nn.ConvTranspose2d): mod.in_channels,mod.out_channels=w.shape[:2]
        if isinstance(mod, nn.GroupNorm): mod.num_groups=mod.num_groups*len(w)//mod.num_channels; mod.num_channels=len(w)
        if type(mod).__name__=='Conv1D': mod.nf=w.shape[1]
    for b in plan.biases:
        mod=m.get_submodule(b); n=mod.weight.shape[0]; mod.bias=nn.Parameter(torch.zeros(n))
    for k,v in plan.attributes.items():
        p,_,a=k.rpartition('.'); setattr(m.get_submodule(p),a,v)
    return m
