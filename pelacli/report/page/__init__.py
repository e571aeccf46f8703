"""The report as one HTML page that needs no network: its sections, its plots, its template.

Nothing here loads torch. Text is escaped by jinja2 and by ElementTree, never by hand.
"""
