import { createHash } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import { createSecureContext } from "node:tls";
import type { Clock } from "../lib/clock.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { ExecCredential } from "./exec-credential.ts";
import type { ExecPluginMetrics } from "./exec-metrics.ts";

/** How to reach one API server and who we are there. Made by kubeconfig.ts, used by transport.ts. */
export interface Access {
  /** Base URL, perhaps with a path prefix; never ends in a slash. */
  readonly server: string;
  /** Namespace of the kubeconfig's context, or of the service account. */
  readonly namespace: string | undefined;
  /**
   * What to present now. Certificate and token files that changed on disk are read again, an expired exec credential is
   * fetched again. Rejects with Invalid (a file is gone or malformed and there is nothing older to use) or Unavailable
   * (the exec plugin failed, or the client certificate has still to be signed).
   */
  credentials(): Promise<Credentials>;
  /** The server answered 401, or what we present has changed: the next `credentials()` looks at everything anew, whatever its age. */
  invalidate(): void;
}

export interface Credentials {
  /** Changes exactly when connections have to be made anew: other CA, client certificate, key or server name. */
  readonly connectionKey: string;
  readonly tls: TlsOptions;
  /** `authorization` and impersonation headers. Secret: never log. */
  readonly headers: Readonly<Record<string, string | string[]>>;
}

export interface TlsOptions {
  readonly ca?: Buffer;
  readonly cert?: Buffer;
  readonly key?: Buffer;
  /** Name to verify and to send as SNI instead of the URL's host. */
  readonly serverName?: string;
  readonly insecureSkipVerify: boolean;
}

/** PEM or token text: given inline, or in a file that may be replaced at any time. */
export type Source = { readonly data: Buffer } | { readonly file: string };

/** A kubeconfig's current context, validated and with paths made absolute. */
export interface AccessSpec {
  server: string;
  /** Where it was read, for messages. */
  origin: string;
  namespace?: string;
  insecureSkipVerify: boolean;
  serverName?: string;
  ca?: Source;
  cert?: Source;
  key?: Source;
  token?: Source;
  basic?: { username: string; password: string };
  /** Header values for `as`, `as-uid`, `as-groups`, `as-user-extra`. */
  impersonate: Record<string, string | string[]>;
  /** Gives the client certificate in place of `cert` and `key`; undefined while there is none. */
  clientCertificate?: () => { readonly cert: Buffer; readonly key: Buffer } | undefined;
  /** Runs the exec plugin. @param called told what the run came to */
  exec?: (called?: ExecPluginMetrics["called"]) => Promise<ExecCredential>;
}

// How long files are believed unchanged. One stat per file and second costs nothing, and a rotated certificate is in
// use within a second (client-go looks every 10 s for the kubelet's certificate, every minute for a token file).
export const fileCheckMs = 1_000;
// A plugin that fails is not run more often than this, however many calls wait for it.
export const execRetryMs = 1_000;

/** Makes an {@link Access}; nothing is read before the first `credentials()`. */
export function createAccess(
  spec: AccessSpec,
  deps: { clock: Clock; log: Logger; execPlugins?: ExecPluginMetrics },
): Access {
  const { clock, log, execPlugins } = deps;
  const files = {
    ca: fileReader(spec.ca, spec.origin),
    cert: fileReader(spec.cert, spec.origin),
    key: fileReader(spec.key, spec.origin),
    token: fileReader(spec.token, spec.origin),
  };
  let current: Credentials | undefined;
  let checkAfterMs = 0;
  let plugin: ExecCredential | undefined;
  let issued: Pick<ExecCredential, "certificate"> = {}; // the last one, also while none is good any more
  let pluginFailure: { err: unknown; untilMs: number } | undefined;
  let running: Promise<Credentials> | undefined;
  let invalidations = 0;
  let reported = "";

  async function execCredential(): Promise<ExecCredential | undefined> {
    if (spec.exec === undefined) return undefined;
    if (plugin !== undefined && (plugin.expiresAtMs === undefined || clock.now() < plugin.expiresAtMs)) return plugin;
    if (pluginFailure !== undefined && clock.monotonic() < pluginFailure.untilMs) throw pluginFailure.err;
    try {
      plugin = await spec.exec(execPlugins?.called);
      execPlugins?.issued(spec, plugin.certificate, issued.certificate);
      issued = plugin;
      pluginFailure = undefined;
      return plugin;
    } catch (err) {
      pluginFailure = { err, untilMs: clock.monotonic() + execRetryMs };
      throw err;
    }
  }

  async function build(): Promise<Credentials> {
    const [ca, fileCert, fileKey, token] = await Promise.all([files.ca(), files.cert(), files.key(), files.token()]);
    const fromPlugin = await execCredential();
    const issued = spec.clientCertificate?.();
    if (spec.clientCertificate !== undefined && issued === undefined) {
      throw new AgentError("Unavailable", `${spec.server}: not asked, because this node has no client certificate yet`);
    }
    const cert = issued?.cert ?? fileCert ?? fromPlugin?.certificate;
    const key = issued?.key ?? fileKey ?? fromPlugin?.key;
    const tls: TlsOptions = {
      insecureSkipVerify: spec.insecureSkipVerify,
      ...(spec.serverName === undefined ? {} : { serverName: spec.serverName }),
      ...(ca === undefined ? {} : { ca }),
      ...(cert === undefined ? {} : { cert }),
      ...(key === undefined ? {} : { key }),
    };
    const connectionKey = digest([ca, cert, key, spec.serverName, String(spec.insecureSkipVerify)]);
    if (connectionKey !== current?.connectionKey) verifyTls(tls, spec.origin);
    // A static credential wins over the plugin's, as it does in client-go.
    const bearer = token?.toString("utf8").trim() ?? (spec.basic === undefined ? fromPlugin?.token : undefined);
    const headers: Record<string, string | string[]> = { ...spec.impersonate };
    if (bearer !== undefined && bearer !== "") headers["authorization"] = `Bearer ${bearer}`;
    else if (spec.basic !== undefined) {
      const { username, password } = spec.basic;
      headers["authorization"] = `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`;
    }
    return { connectionKey, tls, headers };
  }

  async function refresh(): Promise<Credentials> {
    const before = invalidations;
    try {
      current = await build();
      if (reported !== "") log.info("credentials are readable again");
      reported = "";
    } catch (err) {
      // Certificate and key are replaced one after the other, so a moment of mismatch is normal; the old ones still work.
      const isUnusable = current === undefined || spec.exec !== undefined;
      if (isUnusable) throw err;
      const message = messageOf(err);
      if (message !== reported) log.warn({ err: message }, "cannot reload credentials, keeping the ones in use");
      reported = message;
    }
    // What was read while things changed may be the old; it does until the next call.
    checkAfterMs = before === invalidations ? clock.monotonic() + fileCheckMs : 0;
    if (current === undefined) throw new AgentError("Internal", `${spec.origin}: no credentials`);
    return current;
  }

  return {
    server: spec.server.replace(/\/+$/, ""),
    namespace: spec.namespace,
    credentials: async () => {
      const isPluginFresh = plugin?.expiresAtMs === undefined || clock.now() < plugin.expiresAtMs;
      if (current !== undefined && isPluginFresh && clock.monotonic() < checkAfterMs) return current;
      running ??= refresh().finally(() => {
        running = undefined;
      });
      return running;
    },
    invalidate: () => {
      plugin = undefined;
      invalidations += 1;
      checkAfterMs = 0;
    },
  };
}

/** Reads a source; a file is read again only when its identity, size or mtime changed. */
function fileReader(source: Source | undefined, origin: string): () => Promise<Buffer | undefined> {
  if (source === undefined) return async () => undefined;
  if ("data" in source) return async () => source.data;
  let seen = "";
  let content: Buffer | undefined;
  return async () => {
    try {
      const { ino, size, mtimeMs } = await stat(source.file);
      const identity = `${ino}/${size}/${mtimeMs}`;
      if (content === undefined || identity !== seen) {
        content = await readFile(source.file);
        seen = identity;
      }
      return content;
    } catch (err) {
      throw new AgentError("Invalid", `${origin}: cannot read ${source.file}: ${messageOf(err)}`, { cause: err });
    }
  };
}

function verifyTls(tls: TlsOptions, origin: string): void {
  try {
    createSecureContext({ ca: tls.ca, cert: tls.cert, key: tls.key });
  } catch (err) {
    const message = `${origin}: certificate authority, client certificate or key is malformed or does not match: ${messageOf(err)}`;
    throw new AgentError("Invalid", message, { cause: err });
  }
}

function digest(parts: (Buffer | string | undefined)[]): string {
  const hash = createHash("sha256");
  for (const part of parts) {
    hash.update(part === undefined ? "-" : `${part.length}:`);
    if (part !== undefined) hash.update(part);
  }
  return hash.digest("hex");
}
