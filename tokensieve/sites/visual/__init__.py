"""Sites at which visual tokens leave: encoder, handoff, prefill, focus, cross."""
