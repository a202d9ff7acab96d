"""Bad inputs and what they get, by section; tests/test_hardening.py collects them and knows every number."""
