"""What ``torch.compile`` makes of whole models for a GPU, without one: fake tensors say that they are on it."""

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import attnzoo  # noqa: F401
from attnzoo.kernels import use_backend

pytestmark = pytest.mark.compiles

# Model: the fused operators that its program calls.
MODELS = {
    "biformer_stl": {"routing_forward"},
    "dinat_nano": {"neighborhood_forward"},
    "flowformer": {"flow_forward"},
    "l2vit_tiny": {"linear_forward"},
    "mavit_tiny": {"linear_forward"},
    "overlock_xt": {"dynamic_conv_forward"},
    "sparsifiner_deit_tiny": set(),
    "vit_small_kdgqa": set(),
}


@pytest.fixture(autouse=True)
def a_device_that_kernels_run_on(monkeypatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


def on_gpu(model, mode):
    """``model`` with fake parameters and buffers on a GPU."""

    def fake(x):
        return FakeTensor(mode, x.detach().to("meta"), torch.device("cuda:0"))

    for module in model.modules():
        for name, x in module.named_parameters(recurse=False):
            module._parameters[name] = torch.nn.Parameter(fake(x))
        for name, x in module.named_buffers(recurse=False):
            module._buffers[name] = fake(x)
    return model


@pytest.mark.parametrize(("backend", "grad"), [(None, True), ("torch", False)])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")
def test_one_program_with_the_fused_operators(name, backend, grad):
    mode, programs = FakeTensorMode(allow_non_fake_inputs=True), []
    model = on_gpu(timm.create_model(name).eval(), mode)

    def record(graph, inputs):
        targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        programs.append({target.split(".")[1] for target in targets if target.startswith("attnzoo.")})
        return graph

    program = torch.compile(model, backend=record, fullgraph=True)
    with mode, use_backend(backend), torch.autocast("cuda", torch.bfloat16), torch.set_grad_enabled(grad):
        logits = program(torch.empty(2, 3, 224, 224, device="cuda"))
    assert logits.shape == (2, model.num_classes) and logits.device.type == "cuda"
    assert programs == [MODELS[name] if backend is None else set()]
