"""Turns GGUF files into folders that transformers reads."""

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timellama_dist.assets.cache import cache_dir, made_once
from timellama_dist.errors import ConfigError

logger = logging.getLogger(__name__)


def convert_gguf(file: str | Path, output: str | Path | None = None) -> Path:
    """Turn a GGUF file into a folder that transformers reads: bfloat16 safetensors and tokenizer.

    The whole model is de-quantised in memory once, at up to 6 bytes per parameter.

    Args:
        file: a `.gguf` file of any quantisation.
        output: folder to make, left as it is if it exists; by default in the cache, under the
            hash of the file's content.

    Raises:
        ConfigError: not a complete GGUF file of a model that transformers knows.
    """
    file = Path(file).absolute()
    if not file.is_file():
        raise ConfigError(f"no such file: {file}")
    if output is None:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        output = cache_dir() / "backbones" / f"gguf-{digest[:32]}"
    output = Path(output).absolute()
    with made_once(output) as partial:
        if partial is not None:
            write_model(file, partial)
    return output


def write_model(file: Path, output: Path) -> None:
    """Write config, bfloat16 safetensors and tokenizer of a GGUF file into the new `output`."""
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ConfigError(f"{file} is not a GGUF file")
    logger.info("converting %s to safetensors, once (about 20 s for 135M parameters)", file.name)
    # Heavy; only the first use of a backbone converts one.
    import torch
    import transformers
    from safetensors.torch import save_file

    with _quiet_transformers():
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.bfloat16,
                # Otherwise the weights stay packed on machines that have a kernel for them.
                quantization_config=transformers.GgufConfig(dequantize=True),
                output_loading_info=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except Exception as error:  # the readers raise whatever a damaged file makes them meet
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(f"transformers cannot read {file}: {reason[0]}") from error
        model, report = loaded
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        missing = set(report["missing_keys"])
        if model.config.tie_word_embeddings:
            del state["lm_head.weight"]
            missing.discard("lm_head.weight")
        if missing:
            raise ConfigError(
                f"{file} lacks {len(missing)} tensors, such as {min(missing)}: one part of a split "
                "GGUF? merge it first"
            )
        output.mkdir()
        # Not model.save_pretrained: it imports deepspeed wherever that is installed.
        save_file(state, output / "model.safetensors", metadata={"format": "pt"})
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(output)
        tokenizer.save_pretrained(output)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back transformers' warnings and progress bars (one of them a tqdm of its own)."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
