"""Attributes that modules keep beside their parameters, brought in line with grown parameters."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def update(model: nn.Module) -> None:
    """Sets `out_channels`, `num_features` and the like from the shapes of the parameters, for torch's own modules."""
    for module in model.modules():
        if isinstance(module, _ConvNd) and not module.transposed:
            _update_convolution(module)
        elif isinstance(module, nn.Linear) and module.weight.dim() == 2:
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _NormBase):
            for t in (module.weight, module.running_mean):
                if t is not None:
                    module.num_features = t.shape[0]
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.shape[0]


def _update_convolution(module: _ConvNd) -> None:
    out, per_group = module.weight.shape[:2]
    if out == module.out_channels and per_group * module.groups == module.in_channels:
        return
    if module.groups == module.in_channels == module.out_channels and per_group == 1 and module.groups > 1:
        module.groups = out  # depthwise: one group per channel
    module.out_channels, module.in_channels = out, per_group * module.groups
