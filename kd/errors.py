"""The error that people are told of when something cannot be done."""


class UserError(Exception):
    """Something that the user can act on: what was found, what was expected, what to do next.

    ``kind`` tells programs what happened (``diverged``, ``unreachable``, ``refused``; empty for all else), ``setting`` is
    the name of the setting that it speaks of, if there is one: no decision is made by parsing the words.
    """

    def __init__(self, message: str, kind: str = "", setting: str = "") -> None:
        super().__init__(message)
        self.kind, self.setting = kind, setting
