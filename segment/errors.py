"""The errors that a user can cause, told apart from bugs."""


class InputError(ValueError):
    """Bad usage, configuration or data. The command line prints its message as one line and exits with code 2.

    The message says what was expected, what was found, which case, file or key it was, and what to do.
    """

    def __init__(self, message: str) -> None:
        # One line always: some causes (PyYAML, nibabel) put line breaks into their own messages.
        super().__init__(" ".join(str(message).split()))
