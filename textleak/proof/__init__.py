"""Is this the text? Answers that need no truth: the certificate by replay, and the likelihood under noise.

This room never sees the secret.
"""
