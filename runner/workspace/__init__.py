"""The Victoria home, where containers may have written: no link is followed."""
