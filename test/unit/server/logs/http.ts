import { createServer, type IncomingMessage, request, type RequestOptions, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { type Handler, HttpError } from "../../../../agent/server/port.ts";
import { matchRoute, type Route } from "../../../../agent/server/router.ts";

interface Answer {
  status: number;
  headers: IncomingMessage["headers"];
  body: Buffer;
  text: string;
}

/** Serves one handler on loopback as the agent's server does. @param path and @param template as its route has them */
export async function serve(handler: Handler, path: string, template: string) {
  const routes: Route[] = [{ kind: "service", path, endpoints: [{ methods: ["GET", "HEAD"], template, handler }] }];
  const under = new Set<Promise<void>>();
  const failures: unknown[] = [];
  const handle = async (req: IncomingMessage, response: ServerResponse) => {
    const gone = new AbortController();
    response.on("close", () => gone.abort());
    try {
      const match = matchRoute(routes, { method: req.method ?? "", url: req.url ?? "", accept: undefined });
      if (match.kind !== "serve") throw match.error;
      const { params } = match;
      const query = new URLSearchParams(match.query);
      await match.handler({ request: req, response, params, query, signal: gone.signal });
    } catch (err) {
      if (!(err instanceof HttpError)) failures.push(err);
      if (response.headersSent) return;
      const { status, message, headers } = err instanceof HttpError ? err : new HttpError(500, String(err));
      response.writeHead(status, { ...headers }).end(message);
    }
  };
  const server = createServer((req, response) => {
    const one = handle(req, response).finally(() => under.delete(one));
    under.add(one);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const open = async (path: string, options: RequestOptions = {}): Promise<IncomingMessage> =>
    await new Promise((resolve, reject) => {
      request({ host: "127.0.0.1", port, path, agent: false, ...options }, resolve)
        .on("error", reject)
        .end();
    });
  return {
    port,
    failures,
    /** Requests that are being handled. */
    under,
    /** Resolves with the headers; the body is the caller's. */
    open,
    get: async (path: string, options: RequestOptions = {}): Promise<Answer> => {
      const answer = await open(path, options);
      const chunks: Buffer[] = [];
      for await (const chunk of answer as AsyncIterable<Buffer>) chunks.push(chunk);
      const body = Buffer.concat(chunks);
      return { status: answer.statusCode ?? 0, headers: answer.headers, body, text: body.toString() };
    },
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => void server.close(resolve));
      await Promise.all(under);
    },
  };
}
