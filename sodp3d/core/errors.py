"""The one error type that users are meant to read."""


class InputError(ValueError):
    """Wrong input (file, option, environment, checkpoint).

    The message names the key, what was expected, what came, and what to do.
    Commands print it alone, without a traceback, and exit with 2.
    """
