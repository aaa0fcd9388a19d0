"""Who may ask the service, and how much: the guard around the whole application, limits of bodies, the log-in form."""
