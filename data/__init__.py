"""Images, trimaps, compositing and the data sets made of them."""
