import { realpath } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "../../lib/clock.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { isAtOrBeneath } from "../../lib/mount.ts";
import type { Exchange, Handler } from "../port.ts";
import { plainError } from "../respond.ts";
import { createBodyWriter } from "./body.ts";
import { serveFile } from "./file-server.ts";
import { GzipBody, type JournalSource, writeServiceLogs } from "./node-journal.ts";
import { type NodeLogOptions, parseNodeLogQuery } from "./node-log-query.ts";

export interface NodeLogsDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Serve queries, too: `enableSystemLogQuery`. */
  readonly enableQuery: boolean;
  /** Default `/var/log`. */
  readonly rootDir?: string;
  /** Default `journalctl`, found in PATH. */
  readonly journalctl?: string;
}

// The reference's limit of a whole query.
const queryTimeoutMs = 30_000;

/**
 * `GET /logs/{path*}`: the node's own logs, as files below /var/log, and with `enableQuery` from the journal of
 * services.
 */
export function createNodeLogsHandler(deps: NodeLogsDeps): Handler {
  const { enableQuery, rootDir = "/var/log", journalctl = "journalctl" } = deps;
  return async (exchange) => {
    const { path = "" } = exchange.params;
    const query = enableQuery ? parseNodeLogQuery(exchange.query) : undefined;
    if (query === undefined) return await serveFile(rootDir, path, exchange);
    if (path !== "") throw plainError(406, "path not allowed in query mode");
    if (query.kind === "services") {
      return await serveServices(query.services, query.options, { rootDir, journalctl }, exchange, deps);
    }
    return await serveFile(rootDir, await pathInside(rootDir, query.path), exchange);
  };
}

async function serveServices(
  services: readonly string[],
  options: NodeLogOptions,
  source: JournalSource,
  { request, response, signal }: Exchange,
  { clock, log }: NodeLogsDeps,
): Promise<void> {
  const deadline = new AbortController();
  const timer = clock.after(queryTimeoutMs, () => deadline.abort());
  const limited = AbortSignal.any([signal, deadline.signal]);
  const isCompressed = request.headers["accept-encoding"] === "gzip";
  response.writeHead(200, {
    "Content-Type": "text/plain;charset=UTF-8",
    ...(isCompressed ? { "Content-Encoding": "gzip" } : {}),
  });
  const write = createBodyWriter(response, limited);
  try {
    if (isCompressed) {
      using body = new GzipBody(write);
      await writeServiceLogs(services, options, source, async (chunk) => await body.write(chunk), limited);
      await body.end();
    } else {
      await writeServiceLogs(services, options, source, write, limited);
    }
  } catch (err) {
    // The status is sent: whoever reads sees that the text stops.
    if (!signal.aborted) log.info({ services, err: messageOf(err) }, "query of node logs not answered to its end");
  } finally {
    timer.cancel();
    response.end();
  }
}

/** A queried file must lie below the root, links resolved. @returns its path there */
async function pathInside(rootDir: string, path: string): Promise<string> {
  const inside = path.replaceAll("\\", "/"); // from clients on Windows
  const refused = (why: string) => plainError(406, `query: Invalid value: ${JSON.stringify(path)}: ${why}`);
  if (inside.includes("\0")) throw refused("is no path");
  const root = await realpath(rootDir);
  const real = await realpath(join(root, join("/", inside))).catch(() => {
    throw refused("no such file");
  });
  if (!isAtOrBeneath(real, root)) throw refused(`must lie in ${rootDir}`);
  return real === root ? "" : `${real.slice(root.length + 1)}${inside.endsWith("/") ? "/" : ""}`;
}
