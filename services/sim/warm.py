"""Imported by the process that seeds are forked from: what each of them would do again, and that
hangs on no seed. The country table alone takes a third of a second and 50 MB."""

from imcore.countries import country_of

country_of("0.0.0.0")  # noqa: S104 - loads the table
