import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type DockerClient, openDocker } from "../../../../agent/runtime/docker/client.ts";

export interface FakeRequest {
  method: string;
  /** Without the API version. */
  path: string;
  query: URLSearchParams;
  headers: IncomingMessage["headers"];
}

/** Answers a request; `undefined` is 404. A value is sent as JSON. */
export type Answer = (request: FakeRequest, response: ServerResponse) => unknown;

/** What an unanswered route says. */
export const answered = Symbol("the route answered by itself");

/** A Docker daemon that only talks, and a client of it. */
export async function fakeDocker(
  answer: Answer,
  info: Record<string, unknown> = {},
): Promise<{ client: DockerClient; requests: string[] } & AsyncDisposable> {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-docker-"));
  const socketPath = join(dir, "docker.sock");
  const requests: string[] = [];
  const server = createServer((message, response) => {
    const url = new URL(message.url ?? "/", "http://docker");
    const path = url.pathname.replace(/^\/v\d+\.\d+/, "");
    const request = { method: message.method ?? "", path, query: url.searchParams, headers: message.headers };
    message.resume();
    if (path === "/version") return sendJSON(response, 200, { Version: "20.10.24", ApiVersion: "1.41" });
    if (path === "/info") {
      return sendJSON(response, 200, {
        OSType: "linux",
        DockerRootDir: dir,
        Driver: "overlay2",
        CgroupVersion: "1",
        ...info,
      });
    }
    requests.push(`${request.method} ${decodeURIComponent(path)}`);
    void Promise.resolve(answer(request, response)).then((value) => {
      if (value === answered) return;
      if (value === undefined) sendJSON(response, 404, { message: `no such object: ${path}` });
      else sendJSON(response, 200, value);
    });
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  const client = await openDocker({ socketPath, requestTimeoutMs: 5_000 });
  return {
    client,
    requests,
    [Symbol.asyncDispose]: async () => {
      client.close();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      await rm(dir, { recursive: true, force: true });
    },
  };
}

export function sendJSON(response: ServerResponse, status: number, value: unknown): void {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(value));
}
