"""Helpers of the tests that run real daemons, command lines and guests."""
