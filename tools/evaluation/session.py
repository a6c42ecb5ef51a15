"""One call of ``attnzoo eval``, from its arguments to its exit status."""

import argparse
import time
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import nn

from ..cli import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_OK, UserError
from . import report
from .display import Display, print_result
from .loading import LoaderOptions, sample_order
from .loop import Evaluator, State
from .models import Subject, check_input, load_subject
from .results import ResultsFile
from .scores import Scores
from .sources import Source, open_source

_SAVE_SECONDS = 30


class Session:
    """Model, data and results file of one call.

    Args:
        args: Of ``attnzoo eval``.
        file: Where the results go, checked already; None to print them only.
        previous: What the file holds, if that is to be resumed; for a table, that is looked for here.
        command: The call, for the results.
    """

    def __init__(
        self, args: argparse.Namespace, file: ResultsFile | None, previous: dict[str, Any] | None, command: str
    ) -> None:
        self.args, self.file, self.previous = args, file, previous
        torch.manual_seed(args.seed)
        if args.threads:
            torch.set_num_threads(args.threads)
        self.device = _device(args.device)
        self.subject = self._load()
        self.config = self._data_config()
        check_input(self.subject, self.config["input_size"], self.device)
        self.source = self._open()
        self.order = sample_order(self.source, args.limit, args.seed)
        self.identity = report.identity(self.subject, self.source, self.config, self._settings())
        self.run_info = {"command": command, "started": report.now(), "sessions": 1, "seconds": 0.0}
        self.run_id = report.run_id(self.identity)
        if file and file.is_csv:
            self.previous = file.partial_row(self.run_id, args.resume, args.overwrite)
        self.state = State(args.batch_size, args.workers)

    def run(self) -> int:
        """Evaluates, prints, then writes: a full disk costs no figures.

        Returns:
            The exit status.
        """
        if self.previous:
            report.check_same(self.identity, self.previous["identity"], self.file.path)
            if self.previous["status"] == "complete":
                print_result(self.previous)
                return self._exit_status("complete", self.previous["counts"])
            self._restore(self.previous)
        elif self.args.resume and (counts := self.file.finished_counts(self.run_id)):
            print(f"{self.file.path} has this run already")
            return self._exit_status("complete", counts)
        results = self._evaluate()
        try:
            print_result(results)
        finally:  # where standard output is full or gone, too
            if self.file:
                self.write(results)
        return self._exit_status(results["status"], results["counts"])

    def _load(self) -> Subject:
        args = self.args
        return load_subject(
            args.model,
            checkpoint=args.checkpoint,
            checkpoint_key=args.checkpoint_key,
            allow_missing=args.allow_missing,
            random_weights=args.random_weights,
            num_classes=args.num_classes,
            model_kwargs=dict(args.model_kwargs),
            device=self.device,
        )

    def _data_config(self) -> dict[str, Any]:
        """timm's evaluation settings of the model, with the command's options in their place."""
        args = self.args
        in_chans = dict(args.model_kwargs).get("in_chans", 3)
        if in_chans not in (1, 3):
            raise UserError(f"images have 1 or 3 channels, not in_chans={in_chans}")
        for name in ("mean", "std"):
            if (values := getattr(args, name)) and len(values) not in (1, in_chans):
                raise UserError(f"--{name} takes 1 or {in_chans} numbers, not {len(values)}")
        options = {name: getattr(args, name) for name in ("crop_pct", "crop_mode", "interpolation", "mean", "std")}
        if args.img_size:
            options["input_size"] = (in_chans, args.img_size[0], args.img_size[-1])
        config = resolve_data_config({**options, "in_chans": in_chans}, model=self.subject.model, use_test_size=True)
        return {**config, "input_size": (in_chans, *config["input_size"][1:])}

    def _open(self) -> Source:
        args = self.args
        return open_source(
            args.data,
            args.split,
            self.subject.model.num_classes,
            class_map=args.class_map,
            subset=args.subset,
            data_dir=args.data_dir,
            mode="RGB" if self.config["input_size"][0] == 3 else "L",
        )

    def _settings(self) -> dict[str, Any]:
        """The options that a result depends on, to its last bit."""
        args = self.args
        names = ("batch_size", "amp_dtype", "channels_last", "compile", "limit", "seed", "exif")
        settings = {name: getattr(args, name) for name in names}
        return {**settings, "model_kwargs": dict(args.model_kwargs), "device": self.device.type}

    def _restore(self, previous: dict[str, Any]) -> None:
        report.restore(previous, self.state)
        left_out = {item["index"] for item in self.state.excluded}
        indices = [index for index in self.order[: self.state.position] if index not in left_out]
        self.state.scores = Scores.load(self.file.samples_path(self.run_id), self.run_id, indices)
        self.run_info = {**previous["run"], "sessions": previous["run"]["sessions"] + 1}

    def _evaluate(self) -> dict[str, Any]:
        display = Display(len(self.order), self.state)
        for warning in self.source.warnings:
            display.say(f"warning: {warning}")
        if self.state.position:
            display.say(f"going on after {self.state.position:,} of {len(self.order):,} samples")
        saver = _Saver(self, display) if self.file else None

        def after_batch(state: State) -> None:
            display.update(state)
            if saver:
                saver.batch_done()

        evaluator = Evaluator(
            self._forward(),
            self.source,
            self.order,
            LoaderOptions(self.config, self.device, self.args.exif),
            self.subject.model.num_classes,
            None if self.args.amp_dtype == "none" else getattr(torch, self.args.amp_dtype),
            self.args.channels_last,
            after_batch,
        )
        with display:
            done = evaluator.run(self.state)
            display.update(self.state)
        return self.compose("complete" if done else "partial", display)

    def _forward(self) -> nn.Module | Any:
        model = self.subject.model
        if self.args.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return torch.compile(model) if self.args.compile else model

    def compose(self, status: str, display: Display) -> dict[str, Any]:
        """The results as they stand."""
        seconds = self.run_info["seconds"] + display.seconds
        run = {
            **self.run_info,
            "finished": report.now(),
            "seconds": round(seconds, 3),
            "images_per_second": round(display.rate(self.state), 2),
            "device": report.device_name(self.device),
            "threads": torch.get_num_threads(),
        }
        data = {"where": self.args.data, "split": self.args.split}
        return report.compose(status, self.subject, self.source, len(self.order), self.state, self.identity, data, run)

    def write(self, results: dict[str, Any]) -> None:
        """Writes results and scores to the results file.

        Raises:
            UserError: The disk is full or the folder has gone.
        """
        self.file.write(results, self.state.scores.to_bytes(self.run_id))

    def _exit_status(self, status: str, counts: dict[str, int]) -> int:
        if status == "partial":
            return EXIT_INTERRUPTED
        all_seen = counts["evaluated"] + counts["excluded"] == counts["total"]
        clean = counts["evaluated"] and all_seen and not counts["non_finite"]
        return EXIT_OK if clean and counts["excluded"] <= self.args.allow_unreadable else EXIT_INCOMPLETE


class _Saver:
    """Writes partial results every so many batches, and at least twice a minute."""

    def __init__(self, session: Session, display: Display) -> None:
        self.session, self.display = session, display
        self.batches = 0
        self.saved = time.monotonic()
        self.failed = False

    def batch_done(self) -> None:
        self.batches += 1
        due = self.batches % self.session.args.save_every == 0 or time.monotonic() - self.saved > _SAVE_SECONDS
        if not due or self.session.state.position >= len(self.session.order):
            return
        try:
            self.session.write(self.session.compose("partial", self.display))
        except UserError as error:
            # The evaluation is worth more than its partial results; the end will print the figures in any case.
            if not self.failed:
                self.display.say(f"warning: {error}; going on without partial results")
            self.failed = True
        self.saved = time.monotonic()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise ValueError("it computes shapes and no numbers")
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        raise UserError(f"device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device
