"""`GET /docs`: the OpenAPI document as Swagger UI draws it, from files whose digests the browser checks.

People type keys there: a script that somebody has changed on the way would read them.
"""

from __future__ import annotations

_FILES = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0"
_STYLE_DIGEST = "sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I"
_SCRIPT_DIGEST = "sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"

DOCS_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Successor</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{_FILES}/swagger-ui.css" integrity="{_STYLE_DIGEST}" crossorigin="anonymous">
</head>
<body>
<div id="swagger-ui">
<p>Swagger UI, which draws this page, comes from the internet. Without it: <a href="openapi.json">openapi.json</a></p>
</div>
<script src="{_FILES}/swagger-ui-bundle.js" integrity="{_SCRIPT_DIGEST}" crossorigin="anonymous"></script>
<script>
if (window.SwaggerUIBundle) SwaggerUIBundle({{url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true}});
</script>
</body>
</html>
"""
