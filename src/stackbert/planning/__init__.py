"""What a run would cost, before it is paid for."""
