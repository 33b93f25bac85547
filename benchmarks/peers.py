"""The peers: other libraries, timm at its best in PyTorch, and engines over timm's own export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.contender import Contender
from benchmarks.networks import LITE, Subject
from phiscale.errors import PhiscaleError

__all__ = ["engines", "fold_timm", "libraries", "throughput_engines", "timm_tuned"]

# Convolutions and the norms behind them, by timm's names.
FOLDED = (
    ("conv_stem", "bn1"),
    ("conv_head", "bn2"),
)
FOLDED_IN_BLOCKS = {
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}
LIBRARIES = {
    "torchvision": "torchvision",
    "lukemelas": "efficientnet_pytorch",
    "huggingface": "transformers",
    "keras": "keras, torch backend",
}


def libraries(subject: Subject, *, all_of_them: bool = True) -> list[Contender]:
    """Every library's network as it comes, in eval mode; timm's is the first.

    Args:
        subject: The network.
        all_of_them: Whether others than timm are built too.
    """
    found = [_eager(subject, "timm", "timm, eager")]
    for layout, name in LIBRARIES.items() if all_of_them else ():
        if layout == "lukemelas" and subject.name == LITE:
            name = "efficientnet_lite_pytorch"
        try:
            found.append(_eager(subject, layout, name))
        except PhiscaleError as error:
            if subject.name != LITE:  # few have Lite0, and that is no news
                print(f"{name} is left out: {error}")
    return found


def timm_tuned(subject: Subject, *, batch: int, compiled: bool) -> list[Contender]:
    """timm's network, as fast as PyTorch gets it.

    Args:
        subject: The network.
        batch: Images per run, which compiled code is made for.
        compiled: Whether torch.compile is tried too, which takes a minute.
    """
    folded = fold_timm(subject.in_library("timm")).to(memory_format=torch.channels_last)
    half = copy.deepcopy(folded).to(torch.bfloat16)
    found = [
        _torch(subject, "timm, folded, channels_last", folded, torch.float32),
        _torch(subject, "timm, folded, channels_last, bf16", half, torch.bfloat16),
    ]
    if compiled:
        for precision, dtype in (("", torch.float32), (", bf16", torch.bfloat16)):
            net = subject.in_library("timm").to(dtype).to(memory_format=torch.channels_last)
            compiled_net = _compiled(net, _example(subject, batch, dtype))
            found.append(_torch(subject, f"timm, torch.compile, frozen{precision}", compiled_net, dtype))
    return found


def engines(subject: Subject, *, threads: int, batch: int) -> list[Contender]:
    """ONNX Runtime and OpenVINO over timm's export, one run at a time.

    Args:
        subject: The network.
        threads: Of each engine.
        batch: Images per run; OpenVINO gets a graph for just so many, which is faster.
    """
    padding = subject.spec.padding
    found = [_onnx_runtime(subject, threads)]
    for precision in ("fp32", "bf16", "int8"):
        path = subject.timm_int8 if precision == "int8" else subject.timm_onnx
        compiled = _openvino(path, subject, precision, batch, threads, "LATENCY")
        found.append(
            Contender(
                name=f"OpenVINO {precision}, timm's export",
                library="timm",
                engine="OpenVINO",
                precision=precision,
                padding=padding,
                prepare=lambda images: subject.input_of(images).numpy(),
                run=_one_at_a_time(compiled),
            )
        )
    return found


def throughput_engines(subject: Subject, *, threads: int) -> list[Contender]:
    """OpenVINO over timm's export with images under way at once, one per stream, as its makers advise."""
    found = []
    for precision in ("fp32", "bf16", "int8"):
        path = subject.timm_int8 if precision == "int8" else subject.timm_onnx
        compiled = _openvino(path, subject, precision, 1, threads, "THROUGHPUT")
        found.append(
            Contender(
                name=f"OpenVINO {precision}, timm's export, async",
                library="timm",
                engine="OpenVINO",
                precision=precision,
                padding=subject.spec.padding,
                prepare=lambda images: list(subject.input_of(images).numpy()[:, None]),
                run=_several_at_once(compiled),
            )
        )
    return found


def fold_timm(net: nn.Module) -> nn.Module:
    """Fold the norms of a network from `Subject.in_library` into its convolutions, in place.

    Args:
        net: timm's, in eval mode.
    """
    root = net.get_submodule("network")
    _fold(root, FOLDED)
    for module in root.modules():
        _fold(module, FOLDED_IN_BLOCKS.get(type(module).__name__, ()))
    left = [name for name, module in root.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert not left, f"timm has norms under other names: {left}"
    return net


def _fold(module: nn.Module, pairs: tuple[tuple[str, str], ...]) -> None:
    for conv, norm in pairs:
        old = module.get_submodule(norm)
        # timm's norm has the activation in it.
        setattr(module, conv, fuse_conv_bn_eval(module.get_submodule(conv), old))  # type: ignore[type-var, arg-type]
        setattr(module, norm, getattr(old, "act", nn.Identity()))


def _eager(subject: Subject, layout: str, name: str) -> Contender:
    net = subject.in_library(layout)
    return _torch(
        subject,
        name,
        net,
        torch.float32,
        library=layout,
        padding=subject.spec_for(layout).padding,
        channels_last=False,
    )


def _torch(
    subject: Subject,
    name: str,
    net: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    *,
    library: str = "timm",
    padding: str | None = None,
    channels_last: bool = True,
) -> Contender:
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def run(images: Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            output: NDArray[np.float32] = net(images).float().numpy()
        return output

    return Contender(
        name=name,
        library=library,
        engine="PyTorch",
        precision="fp32" if dtype == torch.float32 else "bf16",
        padding=padding or subject.spec.padding,
        prepare=lambda images: subject.input_of(images).to(dtype).to(memory_format=layout),
        run=run,
    )


def _example(subject: Subject, batch: int, dtype: torch.dtype) -> Tensor:
    images = torch.zeros(batch, subject.spec.in_channels, *subject.spec.image_size, dtype=dtype)
    return images.to(memory_format=torch.channels_last)


def _compiled(net: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Compiled with its weights as constants; the setting is read at the first call."""
    import torch._inductor.config as inductor

    compiled: Callable[[Tensor], Tensor] = torch.compile(net, dynamic=False)
    with torch.inference_mode(), inductor.patch(freezing=True):
        compiled(example)
    return compiled


def _onnx_runtime(subject: Subject, threads: int) -> Contender:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(str(subject.timm_onnx), options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = session.run(None, {"images": images})[0]
        return output

    return Contender(
        name="ONNX Runtime, timm's export",
        library="timm",
        engine="ONNX Runtime",
        precision="fp32",
        padding=subject.spec.padding,
        prepare=lambda images: subject.input_of(images).numpy(),
        run=run,
    )


def _openvino(path: Path, subject: Subject, precision: str, batch: int, threads: int, hint: str) -> Any:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    model.reshape([batch, subject.spec.in_channels, *subject.spec.image_size])
    # What is not in int8 runs in bf16 where the processor has it: OpenVINO's own default.
    config = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    if precision != "int8":
        config["INFERENCE_PRECISION_HINT"] = "f32" if precision == "fp32" else "bf16"
    return core.compile_model(model, "CPU", config)


def _one_at_a_time(compiled: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    request = compiled.create_infer_request()

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        request.infer([images], share_inputs=True)
        return np.array(request.get_output_tensor(0).data, np.float32)

    return run


def _several_at_once(compiled: Any) -> Callable[[list[NDArray[np.float32]]], NDArray[np.float32]]:
    import openvino as ov

    queue = ov.AsyncInferQueue(compiled)
    results: dict[int, NDArray[np.float32]] = {}

    def keep(request: Any, index: int) -> None:
        results[index] = np.array(request.get_output_tensor(0).data, np.float32)

    queue.set_callback(keep)

    def run(images: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        for index, image in enumerate(images):
            queue.start_async([image], index, share_inputs=True)
        queue.wait_all()
        return np.concatenate([results.pop(index) for index in range(len(images))])

    return run
