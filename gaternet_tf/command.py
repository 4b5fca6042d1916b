"""What all commands share: paths, help, errors in one line, and output that may be closed.

Imports Python's own library alone until more is needed: `--help` answers at once, and the client
does without absl and TensorFlow.
"""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gaternet_tf.errors import StoppedError, UserError

NOISE = ("I0000 ", "WARNING: All log messages before absl::InitializeLog() is called")
"""How the lines begin that TensorFlow prints at every import."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def local_path(text: str, what: str = "a path") -> str:
    """Returns the path that a command was given, with a leading `~` expanded.

    Args:
      text: the path.
      what: what it is, for the error.

    Raises:
      UserError: for an empty text, which an unset variable leaves, and for a URL.
    """
    if not text or "://" in text:
        hint = "" if text else "; is a variable unset?"
        raise UserError(f"{what} must be one of this machine, got '{text}'{hint}")
    return os.path.expanduser(text)


def define_path(
    name: str,
    default: str | None,
    help_text: str | None,
    required: bool = False,
    suffixes: tuple[str, ...] = ("",),
) -> None:
    """Defines an absl flag for a file or directory, see `local_path`.

    With `suffixes`, only what ends in one of them is a path, and everything else a name.
    """
    from absl import flags

    class PathParser(flags.ArgumentParser):
        def parse(self, argument):
            is_path = not argument or argument.endswith(suffixes)
            return local_path(argument) if is_path else argument

    flags.disclaim_key_flags()  # The flag belongs to the module that calls this function.
    flags.DEFINE(
        PathParser(),
        name,
        default,
        help_text,
        serializer=flags.ArgumentSerializer(),
        required=required,
    )


def run(
    main: Callable[[list[str]], int],
    sections: Mapping[str, Sequence[str]] | None = None,
    examples: Sequence[str] = (),
    **options,
) -> None:
    """Runs an absl command's `main` with the command line, or prints its help, and exits.

    Args:
      main: takes the command line without its flags and returns the exit status.
      sections: names of flags by the headings under which --help shows them; default: all of the
        command's own, without headings, in the order in which they are defined.
      examples: command lines at the end of the help.
      **options: those of `absl.app.run`.
    """
    from absl import app

    if {"--help", "-help", "--helpshort", "-?"} & set(sys.argv[1:]):
        with lasting_output():
            print(help_text(sections, examples))
        sys.exit()
    app.run(main, **options)


def help_text(sections, examples) -> str:
    """Returns the help of the command that runs."""
    from absl import flags

    width = min(shutil.get_terminal_size().columns, 100)
    own = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
    lines = [str(sys.modules["__main__"].__doc__).strip()]
    for heading, names in (sections or {"Flags": own}).items():
        lines += ["", heading]
        for name in names:
            flag = flags.FLAGS[name]
            if flag.boolean:
                usage = f"--[no]{name}"
            elif flag.default is None:
                usage = f"--{name}=..."
            else:
                usage = f"--{name}={flag.default}"
            lines.append(f"  {usage}")
            text = flag.help
            if flag.boolean and flag.default is not None:
                text += f" Default: {str(flag.default).lower()}."
            lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    if examples:
        lines += ["", "Examples", *(f"  {example}" for example in examples)]
    return "\n".join(lines)


def run_command(
    name: str,
    argv: Sequence[str],
    work: Callable[[], int | None],
    tensorflow: bool = True,
    prints_only: bool = False,
) -> int:
    """Does a command's work; returns the exit status.

    Args:
      name: the command's module, for messages.
      argv: the command line without its flags, which must have no further arguments.
      work: returns an exit status, or None for 0; raises `UserError` or `OSError` for what it
        cannot do, which is printed as one line.
      tensorflow: whether the work needs TensorFlow, which is then imported first.
      prints_only: whether what is printed is all the work, so that it fails without.
    """
    output = None
    try:
        with lasting_output() as output:
            if len(argv) > 1:
                raise UserError(f"this command takes flags only, got '{argv[1]}'")
            if tensorflow:
                import_tensorflow()
            status = work() or 0
    except (UserError, OSError) as error:
        kind = "" if isinstance(error, StoppedError) else "error: "
        print(f"{name}: {kind}{error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        status = INTERRUPTED
    if output and output.error:
        print(f"{name}: standard output could not be written: {output.error}", file=sys.stderr)
        status = status or int(prints_only)
    return status


class LastingOutput:
    """A stream whose first failure is kept in `error` instead of ending the program.

    Nobody reads on after a closed pipe, which is no failure. What is written later is lost.
    """

    def __init__(self, stream):
        self.stream = stream
        self.broken = False
        self.error: OSError | None = None

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        """Writes text, or nothing after a failure."""
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self):
        """Flushes the stream, or does nothing after a failure."""
        self._attempt(self.stream.flush)

    def _attempt(self, call, *arguments):
        if self.broken:
            return
        try:
            call(*arguments)
        except OSError as error:
            self.broken = True
            self.error = None if error.errno == errno.EPIPE else error
            # What the stream still holds would fail again at the end of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextlib.contextmanager
def lasting_output() -> Iterator[LastingOutput]:
    """Lets the block outlive its standard output, which escapes what it has no characters for.

    In UTF-8 that are only the names of files which are no valid text; they are printed as they are.
    """
    utf8 = sys.stdout.encoding.lower() == "utf-8"
    errors = "surrogateescape" if utf8 else "backslashreplace"
    sys.stdout.reconfigure(errors=errors)  # type: ignore[union-attr]
    output: Any = LastingOutput(sys.stdout)
    with contextlib.redirect_stdout(output):
        try:
            yield output
        finally:
            output.flush()


def import_tensorflow() -> None:
    """Imports TensorFlow, which is Keras' backend then, without its usual lines on stderr.

    They come before TF_CPP_MIN_LOG_LEVEL counts, so stderr is held back; all other lines are
    printed afterwards.

    Raises:
      UserError: when it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    try:
        with tempfile.TemporaryFile("w+", errors="backslashreplace") as held:
            stderr = os.dup(2)
            os.dup2(held.fileno(), 2)
            try:
                import keras
                import tensorflow  # noqa: F401
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)
                held.seek(0)
                sys.stderr.writelines(line for line in held if not line.startswith(NOISE))
    except ModuleNotFoundError as error:
        raise UserError(
            f"TensorFlow and Keras are required, and {error.name} is not installed; run "
            "pip install '.[all]' in the checkout"
        ) from error
    # ~/.keras/keras.json may have other ones.
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
