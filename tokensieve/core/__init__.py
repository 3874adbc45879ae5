"""What everything else stands on: nothing here knows a method, a model or a file."""
