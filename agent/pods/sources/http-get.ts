import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import { AgentError } from "../../lib/errors.ts";
import { errnoText } from "../../lib/errno-text.ts";
import { manifestBytesMax } from "./file-source.ts";

/** The reference's limit of one whole request. */
export const requestTimeoutMs = 10_000;
/** Go's limit: what redirects longer than that is a loop. */
export const redirectsMax = 10;

export type Headers = Readonly<Record<string, readonly string[]>>;

export interface Answer {
  status: number;
  body: Buffer;
}

/**
 * GETs a URL within 10 s, following redirects; headers of ours go to its own scheme, host and port only. Rejects with
 * Unavailable, DeadlineExceeded or Invalid (too long); no message holds the URL, which may hold a password.
 */
export async function httpGet(url: string, headers: Headers, signal: AbortSignal): Promise<Answer> {
  const deadline = AbortSignal.timeout(requestTimeoutMs);
  const either = AbortSignal.any([signal, deadline]);
  let at = new URL(url);
  const { origin } = at; // with the scheme: what was meant to be encrypted must not be sent in the clear
  for (let redirects = 0; redirects <= redirectsMax; redirects += 1) {
    const answer = await ask(at, at.origin === origin ? headers : {}, either).catch((err: unknown) => {
      if (signal.aborted) throw new AgentError("Canceled", "the agent stops");
      if (!deadline.aborted) throw err;
      throw new AgentError("DeadlineExceeded", `no answer within ${requestTimeoutMs / 1_000} s`);
    });
    if (answer.location === undefined) return answer;
    at = redirected(at, answer.location);
  }
  throw new AgentError("Unavailable", `more than ${redirectsMax} redirects`);
}

function redirected(from: URL, location: string): URL {
  const to = URL.parse(location, from.href);
  if (to === null || (to.protocol !== "http:" && to.protocol !== "https:")) {
    throw new AgentError("Unavailable", "it redirects to what is no HTTP URL");
  }
  return to;
}

async function ask(url: URL, headers: Headers, signal: AbortSignal): Promise<Answer & { location?: string }> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer & { location?: string }>();
  const fail = (err: unknown) => reject(new AgentError("Unavailable", errnoText(err), { cause: err }));
  const send = url.protocol === "https:" ? httpsRequest : httpRequest;
  const copied: Record<string, string[]> = {};
  for (const [name, values] of Object.entries(headers)) copied[name] = [...values];
  const request = send(url, { agent: false, signal, headers: copied }, (response) => {
    const { statusCode: status = 0, headers: answered } = response;
    const isRedirect = [301, 302, 303, 307, 308].includes(status) && answered.location !== undefined;
    const chunks: Buffer[] = [];
    let length = 0;
    response.on("error", fail);
    response.on("data", (chunk: Buffer) => {
      length += chunk.length;
      chunks.push(chunk);
      if (length <= manifestBytesMax) return;
      reject(new AgentError("Invalid", `the answer is larger than ${manifestBytesMax >> 20} MiB`));
      request.destroy();
    });
    response.on("end", () =>
      resolve({
        status,
        body: Buffer.concat(chunks),
        ...(isRedirect && answered.location !== undefined ? { location: answered.location } : {}),
      }),
    );
    response.on("close", () => fail(new Error("the connection broke in the middle of the answer")));
  });
  request.on("error", fail);
  request.end();
  return await promise;
}
