"""The checker that executes annotations in tests: an int is a float, as it is to every type checker."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
