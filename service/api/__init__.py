"""One file for each dialect; the others hold what they share.

1. `common`: what a request finds in the running service, bodies, deadlines, and how a dialect shows an error.
2. `endpoint`: a route, what its handler gets and gives, and the work that most of them ask for.
3. `access`, `parsing`, `scores`: who may do what; bodies to typed requests; scores as several dialects show them.
4. `classify`, `classify_schema`: the native dialect's hot path, its request and its answer.
5. `tensors`, `open_inference`, `open_inference_schema`, `open_inference_models`: the Open Inference Protocol over HTTP.
6. `grpc_messages`, `open_inference_grpc`: the same over gRPC.
7. `text_embeddings_inference`, `hugging_face`: two dialects that are one file each.
8. `operations`: models, health, metrics, administration. `docs_page`: the page for people.
9. `dialects`, `envelope`, `application`: every route in one table; what is around all of them; how FastAPI has them.
10. `reference_routes`, `access_schema`, `reference`: the OpenAPI description of all of it.
"""
