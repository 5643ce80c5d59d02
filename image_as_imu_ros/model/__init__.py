"""Networks, their fixed front end and their weights."""
