"""What people are told when something cannot be done."""


class UserError(Exception):
    """Something the user can act on: what was found, what was expected, what to do next."""
