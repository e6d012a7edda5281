"""What every container engine must do, the fake one and the real ones alike."""
