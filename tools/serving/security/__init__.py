"""Who may ask the service, and how much: the guard around the application, limits of bodies and connections, log-in."""
