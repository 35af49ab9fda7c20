"""Numbers to pictures: tables for the screen and plots for the eye."""
