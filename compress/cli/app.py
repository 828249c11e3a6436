"""What can be typed: the main job's options and the other commands. What they do is in the modules beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from compress import __version__
from compress.cli.session import PROGRAM, Session
from compress.cli.values import LATENCY, NAMES, PIXELS, REAL, REALS, SIZE, WHOLE
from compress.errors import nearest_names

Command = Callable[..., Any]
SECTIONS = ("What to compress", "Budget", "How", "Output")
MODEL_FORMS = "a built-in name, timm:NAME, torchvision:NAME, hf:NAME, FILE.py:FUNCTION, FILE.pt2"
DATA_FORMS = (
    "digits, mnist[:DIR], cifar10[:DIR], set11[:DIR], bsd400[:DIR], a folder of images, FILE.npz, FILE.py:FUNCTION"
)
EPILOG = "Exit status: 0 done, 1 a bug, 2 bad input, 3 the budget can't be met, 4 a check failed, 130 interrupted."


class SectionedOption(click.Option):
    """An option that knows under which heading the help lists it."""

    def __init__(self, *arguments: Any, section: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section = section


class Main(click.Group):
    """The main job as it stands, and the other commands by name."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Two lines: the main job's, and the others'."""
        formatter.write_usage(PROGRAM, "--model MODEL --target TARGET [options]")
        formatter.write_usage(PROGRAM, "COMMAND [options]", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options by section, then the commands."""
        for section in SECTIONS:
            options = [p for p in self.get_params(ctx) if getattr(p, "section", SECTIONS[-1]) == section]
            with formatter.section(section):
                formatter.write_dl([record for p in options if (record := p.get_help_record(ctx)) is not None])
        self.format_commands(ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command by its name.

        Raises:
            UsageError: there is none of that name; the nearest is named.
        """
        name = args[0]
        if name.startswith("-") or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        near = nearest_names(name, self.list_commands(ctx), most=1)
        hint = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(self.list_commands(ctx))}"
        raise click.UsageError(f"no such command {name!r}; {hint}; a network is named by --model", ctx)


def _option(section: str, *names: str, **settings: Any) -> Callable[[Command], Command]:
    return click.option(*names, cls=SectionedOption, section=section, **settings)


def _job_options(command: Command) -> Command:
    """The options of the main job, in the order of the help."""
    what, budget, how, output = SECTIONS
    number = {"type": REAL, "metavar": "NUMBER"}
    options = [
        _option(what, "--model", metavar="MODEL", help=f"The network: {MODEL_FORMS}."),
        _option(what, "--target", metavar="TARGET", help="The device: a name from 'compress targets', or FILE.toml."),
        _option(what, "--data", metavar="DATA", help=f"The data: {DATA_FORMS}. Default: the network's own."),
        _option(what, "--weights", metavar="FILE", help="A checkpoint for the network, or 'random'."),
        _option(what, "--mean", type=REALS, metavar="M,M,M", help="Of (x/255 - mean)/std, one number a channel."),
        _option(what, "--std", type=REALS, metavar="S,S,S", help="Of (x/255 - mean)/std, one number a channel."),
        _option(what, "--sensing", type=REAL, metavar="0.1", help="See by binary patterns: measurements a pixel."),
        _option(what, "--image-size", type=PIXELS, metavar="128x128", help="For a network that takes any size."),
        _option(budget, "--max-drop", help="Accuracy that may be lost, in points or dB.", **number),
        _option(budget, "--latency", type=LATENCY, metavar="5ms", help="Time for one input, at most."),
        _option(budget, "--ram", type=SIZE, metavar="256KiB", help="Working memory, at most."),
        _option(budget, "--flash", type=SIZE, metavar="512KiB", help="Size of the file, at most."),
        _option(budget, "--macs", type=REAL, metavar="0.5", help="Fraction of the multiply-accumulates to keep."),
        _option(budget, "--params", type=REAL, metavar="0.5", help="Fraction of the parameters to keep."),
        _option(budget, "--weight-bits", type=REAL, metavar="4.0", help="Bits a weight on average, at most."),
        _option(budget, "--activation-bits", type=WHOLE, metavar="8", help="Bits an activation, at most."),
        _option(budget, "--bit-operations", type=WHOLE, metavar="N", help="MACs x weight bits x activation bits."),
        _option(how, "--prune", metavar="METHOD", help="Pruning method, or none. Default: the best there is."),
        _option(how, "--quantize", metavar="METHOD", help="Quantization method, or none. Default: the best there is."),
        _option(how, "--epochs", type=WHOLE, metavar="N", help="Of fine-tuning. Default: 1 on built-in data, else 0."),
        _option(how, "--samples", type=WHOLE, metavar="N", help="Images to calibrate on. Default: 1024."),
        _option(how, "--candidates", type=WHOLE, metavar="N", help="How many to make, at most. Default: 8."),
        _option(how, "--runtime", metavar="NAME", help="The runtime whose figures count, if the target has several."),
        _option(
            how, "--protect-classes", type=NAMES, metavar="C,C", help="Classes whose false negatives must not rise."
        ),
        _option(how, "--tune", type=REAL, metavar="SECONDS", help="Time the compiled kernels' blocks here, for cpu."),
        _option(how, "--processes", type=WHOLE, metavar="N", help="Of this machine that make candidates. Default: 1."),
        _option(how, "--workers", metavar="ADDRESS", help="A Dask scheduler whose workers make them: tcp://HOST:8786."),
        _option(how, "--no-cache", is_flag=True, help="Make everything anew, and keep nothing for later runs."),
        _option(how, "--calibration", metavar="FILE", help="Predict by this one, or none. Default: the target's own."),
        _option(how, "--seed", type=WHOLE, metavar="N", help="Of all randomness. Default: 0."),
        _option(output, "--out", metavar="DIR", help="The run folder. Default: runs/MODEL-TARGET."),
        _option(output, "--resume", is_flag=True, help="Go on with an unfinished run; its options are known."),
        _option(output, "--json", "as_json", is_flag=True, help="Print front.json on standard output."),
        _option(output, "-q", "--quiet", is_flag=True, help="Show no progress."),
        _option(output, "-v", "--verbose", is_flag=True, help="Show every step, and a traceback if there is a bug."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


SHARED = ("as_json", "quiet", "verbose")
"""Options of the main job that may also stand before another command."""


@click.group(
    cls=Main,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@_job_options
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, /, **typed: Any) -> int:
    """Compress a network for a device and measure the files that ship.

    The one line to begin with: compress --model resnet --target jetson
    """
    session: Session = context.obj
    session.verbose = typed["verbose"]
    given = [name for name, value in typed.items() if value is not None and value is not False and name not in SHARED]
    if context.invoked_subcommand is not None:
        if given:
            option = next(p.opts[0] for p in context.command.params if p.name == given[0])
            message = f"{option} belongs to the main job, it doesn't go with the command {context.invoked_subcommand}"
            raise click.UsageError(message, context)
        return 0
    if not given:
        click.echo(context.get_help())
        return 0
    from compress.cli import job

    return job.run(session, typed)


def _json(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _verbose(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    context.obj.verbose |= value


def _shared(command: Command) -> Command:
    """What every other command takes too."""
    verbose = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_verbose, help="Traceback if there is a bug."
    )
    return _json(verbose(click.pass_context(command)))


def _wants_json(context: click.Context, here: bool) -> bool:
    parent = context.parent
    return here or bool(parent is not None and parent.params.get("as_json"))


@cli.command()
@click.argument("name", required=False)
@_shared
def targets(context: click.Context, name: str | None, as_json: bool) -> int:
    """The devices; with NAME, every number of one with its source."""
    from compress.cli import lists

    return lists.targets(name, _wants_json(context, as_json))


@cli.command()
@_shared
def models(context: click.Context, as_json: bool) -> int:
    """The built-in networks, and what else --model takes."""
    from compress.cli import lists

    return lists.models(_wants_json(context, as_json))


@cli.command()
@click.option("--onnx", metavar="FILE", help="Check this ONNX file instead, by the rules of the target's runtime.")
@click.option("--target", metavar="TARGET", help="The device that the file is for.")
@click.option("--dla", is_flag=True, help="List what a DLA doesn't take, too.")
@_shared
def doctor(context: click.Context, onnx: str | None, target: str | None, dla: bool, as_json: bool) -> int:
    """What is installed and what is missing; a self-check."""
    if onnx is None and (target is not None or dla):
        raise click.UsageError("--target and --dla go with --onnx FILE", context)
    if onnx is not None:
        from compress.cli import onnx_check

        return onnx_check.run(onnx, target, dla, _wants_json(context, as_json))
    from compress.cli.doctor import run

    return run(_wants_json(context, as_json))


@cli.command()
@click.argument("bundle")
@click.option("--data", metavar="DATA", help="Where the data is, if not where the bundle says.")
@_shared
def verify(context: click.Context, bundle: str, data: str | None, as_json: bool) -> int:
    """Check a bundle: hashes, golden inputs, accuracy."""
    from compress.cli import bundles

    return bundles.verify(bundle, data, _wants_json(context, as_json))


@cli.command()
@click.argument("bundle", required=False)
@click.option(
    "--device",
    "devices",
    metavar="DEVICE",
    multiple=True,
    help="Where: local, this machine; qemu, its processor emulated; ssh://USER@HOST[:PORT][/PYTHON]; "
    "rpc://HOST:PORT/KEY, a board of TVM's tracker. Several ssh:// devices are measured at once.",
)
@click.option("--runtime", metavar="NAME", help="onnxruntime, tvm or tensorrt. Default: the fastest that is there.")
@click.option("--queue", metavar="FILE", help="With BUNDLE, put it into this queue; without, measure what it holds.")
@_shared
def profile(
    context: click.Context,
    bundle: str | None,
    devices: tuple[str, ...],
    runtime: str | None,
    queue: str | None,
    as_json: bool,
) -> int:
    """Time a bundle, or count its instructions, after checking its golden inputs."""
    from compress.cli import bundles
    from compress.cli import devices as far

    here = not any("://" in device for device in devices)
    if queue is not None and bundle is None:
        if devices or runtime:
            raise click.UsageError("--queue without BUNDLE measures what the file holds: leave the rest out", context)
        return far.work_off(queue, _wants_json(context, as_json), quiet=False)
    if bundle is None:
        raise click.UsageError("give the folder of a BUNDLE, such as RUN/bundle, or --queue FILE", context)
    if queue is not None:
        if here:
            raise click.UsageError("--queue is for devices: add --device ssh://USER@HOST", context)
        return far.enqueue(queue, bundle, devices, runtime, _wants_json(context, as_json))
    if not here:
        return far.profile(bundle, devices, runtime, _wants_json(context, as_json))
    if len(devices) > 1:
        raise click.UsageError("local and qemu go alone: give one --device", context)
    return bundles.profile(bundle, devices[0] if devices else "local", runtime, _wants_json(context, as_json))


@cli.command()
@click.argument("target")
@click.option("--device", metavar="DEVICE", help="Where: local, this machine; qemu, instructions; ssh://USER@HOST.")
@_shared
def calibrate(context: click.Context, target: str, device: str | None, as_json: bool) -> int:
    """Time designed networks on a device, so that runs for TARGET predict by them."""
    from compress.cli import calibrate as calibrating

    return calibrating.run(target, device, _wants_json(context, as_json))


@cli.command()
@click.argument("run")
@click.argument("candidate", required=False)
@click.option("--predicted", is_flag=True, help="Measure nothing: what the latency model says alone.")
@_shared
def explain(context: click.Context, run: str, candidate: str | None, predicted: bool, as_json: bool) -> int:
    """Where a candidate's time goes by layer, why it isn't less, what helps."""
    from compress.cli import explain as explaining

    return explaining.run(run, candidate, predicted, _wants_json(context, as_json))


@cli.command()
@click.argument("run")
@click.argument("other", required=False)
@click.option("--markdown", is_flag=True, help="Print the report as Markdown instead, for a CI job's summary.")
@click.option("--out", metavar="FILE", help="With two runs, the page to write. Default: RUN-beside-OTHER.html.")
@_shared
def report(context: click.Context, run: str, other: str | None, markdown: bool, out: str | None, as_json: bool) -> int:
    """Draw report.html and front.svg of a run again; of two runs, one page."""
    from compress.cli import reports

    as_json = _wants_json(context, as_json)
    if markdown and as_json:
        raise click.UsageError("--markdown and --json print two different things: leave one out", context)
    if out is not None and (other is None or markdown):
        raise click.UsageError("--out is for the page of two runs: give two, without --markdown", context)
    form: reports.Form = "json" if as_json else "markdown" if markdown else "page"
    if other is None:
        return reports.one(run, form)
    return reports.two(run, other, out, form)


@cli.command()
@click.option("--clear", is_flag=True, help="Remove all of it.")
@_shared
def cache(context: click.Context, clear: bool, as_json: bool) -> int:
    """What earlier runs made and later ones take: how much, and where."""
    from compress.cli import lists

    return lists.cache(clear, _wants_json(context, as_json))
