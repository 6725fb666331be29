"""Two real architectures with seeded random weights: sources for `module:factory`."""

import torch
from transformers import BertConfig, BertModel, ResNetConfig, ResNetForImageClassification


class OnlyLogits(torch.nn.Module):
    """The classifier as one tensor in, one tensor out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


def resnet50() -> torch.nn.Module:
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig()).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # A fresh BatchNorm is the identity; a trained one is not.
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return OnlyLogits(model)


class LastHiddenState(torch.nn.Module):
    """The encoder as ids and mask in, hidden states out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, attention_mask=attention_mask).last_hidden_state


def bert_base() -> torch.nn.Module:
    torch.manual_seed(0)
    return LastHiddenState(BertModel(BertConfig(), add_pooling_layer=False).eval())
