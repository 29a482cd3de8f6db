"""The whole job, through the doors that a user has: the command line and HTTP."""
