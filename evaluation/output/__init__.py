"""Write results: tables, image sheets, folders of predictions."""
