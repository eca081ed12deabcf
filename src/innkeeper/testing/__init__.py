"""For tests of your own software: a pytest plugin that gives every test a VM of its own."""
