"""The commands of `dasnet`: one thin module each."""
