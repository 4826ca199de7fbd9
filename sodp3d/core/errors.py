"""The error that users are meant to read."""


class InputError(ValueError):
    """Wrong input (file, option, environment, checkpoint).

    The message names the key, what was expected, what came, and what to do.
    Commands print it alone, without a traceback, and exit with 2.
    """


class AlreadyFinishedError(InputError):
    """What was asked for is finished, and is not done twice. Of a sweep, the other jobs go on."""
