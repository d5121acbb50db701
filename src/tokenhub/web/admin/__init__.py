"""The admin API under /admin/v1, one file per noun."""
