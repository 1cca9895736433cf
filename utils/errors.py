"""Mistakes that the user can mend, and how they are told."""


class UserError(Exception):
    """A mistake the user can mend, told in one sentence; `train.py` prints it and exits with code 2.

    The text says what was wrong, the value, what is expected and what to do.
    """

    def sentence(self):
        """The text alone, also where a loader worker has wrapped it in its own traceback."""
        text = str(self).strip()
        if not text.startswith("Caught UserError"):
            return text
        return text.rsplit("UserError: ", 1)[-1].strip()


def told(error):
    """The sentence that tells a `UserError`, or an OSError: a file or folder that cannot be used."""
    return error.sentence() if isinstance(error, UserError) else f"{error}; give another file or folder"
