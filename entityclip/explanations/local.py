"""A causal language model in this process, through transformers: a folder, a hub name, a GGUF file.

Needs the extra ``llm``: ``pip install 'entityclip[llm]'``. Weights are read as safetensors or GGUF,
never unpickled, and code that comes with a model is not run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from entityclip.devices import best_device, supports_bf16
from entityclip.explanations.answers import has_thinking
from entityclip.explanations.llm import Completion, LLMError, Sampling, need

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WINDOW = 32  # batches whose prompts are sorted by length together: little padding, early answers
_PLAIN = "{prompt}\n\nAnswer:"  # for models without a chat template


class LocalLLM:
    """Answers prompts in batches of similar length, padded on the left, on the GPU if there is one.

    Each prompt draws its tokens from its own stream, seeded with `Sampling.seed` and the prompt. So
    an answer does not depend on what else was asked, nor on where a run was interrupted, beyond
    the rounding that another batch shape brings.

    Args:
        model: a transformers causal LM, with its weights.
        tokenizer: the model's. Without a chat template, prompts are sent as plain text.
        name: names the model in cached rows; the same name must mean the same weights.
        batch_size: prompts at a time. On a GPU that runs out of memory a batch is halved.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_size: int = 16,
    ) -> None:
        from transformers import GenerationConfig

        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.model, self.batch_size = name, batch_size
        self._lm, self._tokenizer = model.eval(), tokenizer
        self._stops = _stop_tokens(model, tokenizer)
        self._pad = tokenizer.pad_token_id
        if self._pad is None:  # masked, so any token will do
            self._pad = min(self._stops, default=0)
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # the model's own defaults (repetition penalties, top-k) would be sampling no row records
        model.generation_config = GenerationConfig(
            do_sample=False,  # the noise draws; what is left is to take the maximum
            eos_token_id=sorted(self._stops) or None,
            pad_token_id=self._pad,
        )

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        name: str | None = None,
        batch_size: int = 16,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        device: str | torch.device | None = None,
    ) -> LocalLLM:
        """Read a model: a folder that `save_pretrained` wrote, a ``.gguf`` file, or a hub's name.

        A GGUF file's weights are unpacked to `precision`, so it takes the memory of a full model.
        `precision` "auto" is bf16 on a GPU that supports it, else fp32; `device` is the GPU if
        there is one, else the CPU. `name` is the folder's, file's or hub's name unless given.

        Raises LLMError, saying what to do, without the extra ``llm`` and for a missing or
        unreadable model; ValueError for an unknown precision.
        """
        need("transformers")
        device = torch.device(device or best_device())
        dtype = _dtype(precision, device)
        source, options = _source(model)
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # for a few seconds: they end up in notebooks as noise
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            options = options or {"use_safetensors": True}
            lm = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
        # what a damaged or foreign file raises depends on where in its parsing it is noticed
        except Exception as error:
            raise LLMError(
                f"cannot load the language model {str(model)!r}: {type(error).__name__}: {error}. "
                "Give a folder with config, tokenizer and safetensors weights, a .gguf file of an "
                "architecture that transformers reads, or a hub's name where the hub is reachable"
            ) from error
        finally:
            if bars:
                logging.enable_progress_bar()
        # a folder named by "." has a name only once it is resolved
        name = name or (Path(model).resolve().name if Path(model).exists() else str(model))
        return cls(lm.to(device), tokenizer, name=name, batch_size=batch_size)

    def complete(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """See `LLM.complete`. Batch by batch, the longest prompts of a window first.

        A prompt that leaves no room for `max_tokens` in the model's context comes as "error".
        """
        step = _WINDOW * self.batch_size
        for first in range(0, len(prompts), step):
            window = range(first, min(first + step, len(prompts)))
            ready = []
            for index, ids in zip(window, self._encode(prompts[first : first + step]), strict=True):
                if self._context and len(ids) + sampling.max_tokens > self._context:
                    note = f"prompt and max_tokens exceed the model's context of {self._context}"
                    yield index, Completion("", "error", self.model, note)
                else:
                    ready.append((index, ids, _stream(prompts[index], sampling.seed)))
            # longest first: what does not fit the memory fails at once, not after hours
            ready.sort(key=lambda row: -len(row[1]))
            for start in range(0, len(ready), self.batch_size):
                yield from self._answer(ready[start : start + self.batch_size], sampling)

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt as one user message; templates add their own special tokens."""
        chat = bool(self._tokenizer.chat_template)
        texts = [_PLAIN.format(prompt=prompt) for prompt in prompts]
        if chat:  # no system role: older templates refuse it
            texts = self._tokenizer.apply_chat_template(
                [[{"role": "user", "content": prompt}] for prompt in prompts],
                tokenize=False,
                add_generation_prompt=True,
            )
        return self._tokenizer(texts, add_special_tokens=not chat, verbose=False)["input_ids"]

    def _answer(
        self, rows: list[tuple[int, list[int], int]], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Completions of one batch of (index, token ids, seed)."""
        indices, prompts, seeds = map(list, zip(*rows, strict=True))
        try:
            answers = self._generate(prompts, seeds, sampling)
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise LLMError(
                    f"{self.model} runs out of GPU memory on a single prompt; use precision bf16, "
                    "a smaller model or device='cpu'"
                ) from error
            answers = None
        if answers is None:  # outside the handler, which would keep the failed batch's memory
            half = len(rows) // 2
            yield from self._answer(rows[:half], sampling)
            yield from self._answer(rows[half:], sampling)
        else:
            yield from zip(indices, map(self._completion, answers), strict=True)

    @torch.inference_mode()
    def _generate(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling
    ) -> list[list[int]]:
        """New token ids of each prompt, with the padding after its end."""
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        device = self._lm.device
        # generation goes on from the last position, so padding must not stand there
        ids, mask = (
            pad_sequence(rows, batch_first=True, padding_value=fill, padding_side="left").to(device)
            for rows, fill in (
                (list(map(torch.tensor, prompts)), self._pad),
                ([torch.ones(len(prompt), dtype=torch.int64) for prompt in prompts], 0),
            )
        )
        steps = LogitsProcessorList()  # at temperature 0 the likeliest token is taken as it is
        if sampling.temperature > 0:
            steps.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_p < 1:
                steps.append(TopPLogitsWarper(sampling.top_p))
            steps.append(GumbelDraw(seeds, device))
        drawn = self._lm.generate(
            ids, attention_mask=mask, max_new_tokens=sampling.max_tokens, logits_processor=steps
        )
        return drawn[:, ids.shape[1] :].tolist()

    def _completion(self, ids: list[int]) -> Completion:
        """Cut at the first stop token; without one the answer was cut by `max_tokens`."""
        end = next((i for i, token in enumerate(ids) if token in self._stops), None)
        text = self._tokenizer.decode(ids[:end])
        if not has_thinking(text):  # whose marks may be special tokens; without them it would stay
            text = self._tokenizer.decode(ids[:end], skip_special_tokens=True)
        return Completion(text.strip(), "length" if end is None else "stop", self.model)


class GumbelDraw:
    """Adds standard Gumbel noise, a stream a row, so that the maximum is a draw from the softmax.

    The Gumbel-max trick (Gumbel, 1954; Maddison et al., 2014). Unlike torch.multinomial over a
    batch, a row's draw does not depend on the other rows.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] with noise; -inf stays -inf."""
        noise = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, stream in zip(noise, self._streams, strict=True):
            row.exponential_(generator=stream)
        return scores.float() - noise.clamp_min_(1e-30).log_()


def _stream(prompt: str, seed: int) -> int:
    text = f"{seed}\n{prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Whatever model or tokenizer call the end; chat models often name two tokens."""
    named = (tokenizer, model.config.get_text_config(), model.generation_config)
    ends = [getattr(one, "eos_token_id", None) for one in named]
    flat = [token for end in ends for token in (end if isinstance(end, list) else [end])]
    return {token for token in flat if token is not None}


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision is {precision!r}; it is auto, fp32 or bf16")
    fast = precision == "auto" and supports_bf16(device)
    return torch.bfloat16 if fast or precision == "bf16" else torch.float32


def _source(model: str | Path) -> tuple[str, dict[str, str]]:
    """What `from_pretrained` is given: folder or hub name, and the GGUF file in that folder."""
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        need("gguf")
        if not path.is_file():
            raise LLMError(f"there is no GGUF file {str(model)!r}; check the path")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise LLMError(f"{str(model)!r} is no GGUF file; was its download cut short?")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_file():
        raise LLMError(f"{str(model)!r} is a file; give its folder, or a .gguf file")
    if not path.is_dir() and (isinstance(model, Path) or str(model).startswith((".", "/", "~"))):
        raise LLMError(f"there is no model folder {str(model)!r}; check the path")
    return str(path) if path.is_dir() else str(model), {}
