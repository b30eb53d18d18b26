import { type IncomingMessage, request as requestHTTP } from "node:http";
import { request as requestHTTPS } from "node:https";
import type { Container, HTTPGetAction } from "../kube/types.ts";
import { errnoText } from "../lib/errno-text.ts";
import { handlerPort, hostPort } from "./address.ts";

/** Redirects followed before we give up (Go's http.Client). */
export const redirectsMax = 10;
/** Bytes of an answer's body that are read (kubelet: 10 KiB). */
export const bodyBytesMax = 10 * 1024;

/** What an HTTP handler of a pod asks for. */
export interface HTTPTarget {
  url: URL;
  /** In the order given; names are kept as they are written. */
  headers: readonly (readonly [string, string])[];
}

export interface HTTPAnswer {
  status: number;
  /** Up to {@link bodyBytesMax}. */
  body: string;
}

/**
 * Where `action` leads.
 *
 * @param podIP used where the action names no host
 * @param userAgent sent unless the action sets its own; a header with an empty value is left out
 * @throws Error if the port cannot be made out or the URL is none
 */
export function httpTarget(action: HTTPGetAction, container: Container, podIP: string, userAgent: string): HTTPTarget {
  const port = handlerPort(action.port, container);
  const scheme = (action.scheme ?? "HTTP").toLowerCase();
  const host = action.host === undefined || action.host === "" ? podIP : action.host;
  if (host === "") throw new Error("the pod has no IP address yet");
  const path = action.path ?? "/";
  const url = new URL(`${scheme}://${hostPort(host, port)}${path.startsWith("/") ? "" : "/"}${path}`);
  url.hash = "";
  const given = (action.httpHeaders ?? []).map(({ name, value }) => [name, value] as const);
  const has = (name: string) => given.some(([other]) => other.toLowerCase() === name);
  const headers = [
    ...given.filter(([, value]) => value !== ""),
    ...(has("user-agent") ? [] : [["User-Agent", userAgent] as const]),
    ...(has("accept") ? [] : [["Accept", "*/*"] as const]),
  ];
  return { url, headers };
}

/**
 * GETs a target, following redirects on the same host; the answer that leads to another is the last one. The certificate of an HTTPS server is not verified, as handlers are
 * aimed at pods, which rarely have one that could be. No connection is kept.
 *
 * Rejects with an Error whose message is for people: what failed, and where. Aborting `signal` is such a failure, too.
 *
 * @param timeoutMs for everything together; undefined: none
 */
export async function httpGet(
  { url, headers }: HTTPTarget,
  { timeoutMs, signal }: { timeoutMs: number | undefined; signal: AbortSignal },
): Promise<HTTPAnswer> {
  const deadline = timeoutMs === undefined ? signal : AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]);
  let at = url;
  for (let followed = 0; ; followed += 1) {
    const { status, location, body } = await once(at, headers, deadline);
    const next = redirectTarget(status, location, at);
    if (next === undefined || next.hostname !== url.hostname) return { status, body };
    if (followed === redirectsMax) throw new Error(`Get "${textOf(next)}": stopped after ${redirectsMax} redirects`);
    at = next;
  }
}

const timeoutText = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";

// The URL class leaves out a scheme's own port; servers and people are told it.
function authority({ host, port, protocol }: URL): string {
  return port === "" ? `${host}:${protocol === "https:" ? 443 : 80}` : host;
}

function textOf(url: URL): string {
  return `${url.protocol}//${authority(url)}${url.pathname}${url.search}`;
}

interface RawAnswer {
  status: number;
  location: string | undefined;
  body: string;
}

function redirectTarget(status: number, location: string | undefined, from: URL): URL | undefined {
  if (![301, 302, 303, 307, 308].includes(status) || location === undefined) return undefined;
  return URL.parse(location, from.href) ?? undefined;
}

async function once(url: URL, headers: HTTPTarget["headers"], signal: AbortSignal): Promise<RawAnswer> {
  try {
    return await request(url, headers, signal);
  } catch (err) {
    throw new Error(`Get "${textOf(url)}": ${signal.aborted ? timeoutText : errnoText(err)}`, { cause: err });
  }
}

async function request(url: URL, headers: HTTPTarget["headers"], signal: AbortSignal): Promise<RawAnswer> {
  return await new Promise<RawAnswer>((resolve, reject) => {
    if (signal.aborted) {
      reject(new Error(timeoutText));
      return;
    }
    const isTLS = url.protocol === "https:";
    const options = { method: "GET", agent: false, setHost: false, rejectUnauthorized: false };
    // Throws for a header that HTTP cannot carry, which rejects.
    const sent = (isTLS ? requestHTTPS : requestHTTP)(url, { ...options, headers: rawHeaders(url, headers) });
    // Not handed to the request as its `signal`: that would not end a body that is being read.
    const onAbort = () => sent.destroy(new Error(timeoutText));
    signal.addEventListener("abort", onAbort, { once: true });
    const settle = (act: () => void) => {
      signal.removeEventListener("abort", onAbort);
      act();
      sent.destroy();
    };
    sent.on("error", (err) => settle(() => reject(err)));
    sent.on("upgrade", (response, socket) => {
      socket.destroy();
      settle(() => resolve({ status: response.statusCode ?? 0, location: undefined, body: "" }));
    });
    sent.on("response", (response) => {
      readBody(response).then(
        (body) => {
          const { statusCode: status = 0 } = response;
          settle(() => resolve({ status, location: response.headers.location, body }));
        },
        (err: unknown) => settle(() => reject(err instanceof Error ? err : new Error(String(err)))),
      );
    });
    sent.end();
  });
}

// Names and values in turn: as a list, they go out as they are written, and repeated ones stay apart.
function rawHeaders(url: URL, headers: HTTPTarget["headers"]): string[] {
  const isHost = (name: string) => name.toLowerCase() === "host";
  const host = headers.findLast(([name]) => isHost(name))?.[1] ?? authority(url);
  return ["Host", host, "Connection", "close", ...headers.filter(([name]) => !isHost(name)).flat()];
}

async function readBody(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    length += chunk.length;
    if (length >= bodyBytesMax) break; // leaving the loop ends the response
  }
  return Buffer.concat(chunks).subarray(0, bodyBytesMax).toString("utf8");
}
