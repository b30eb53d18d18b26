import type { Clock } from "../../lib/clock.ts";
import type { Logger } from "../../lib/log.ts";
import { type Certificate, readBundle } from "./certificate.ts";
import { loadReloaded } from "./reloaded.ts";

/** The authorities whose client certificates count. */
export interface ClientCA {
  /** The bundle as PEM: what the TLS handshake names to clients. */
  current(): Buffer;
  /** The same, read. Another array after each change. */
  roots(): readonly Certificate[];
  /** Calls `listener` after the bundle changed. @returns ends it */
  subscribe(listener: () => void): () => void;
  /** Follows the file until `signal` aborts; then resolves. Never rejects. Call it once. */
  run(signal: AbortSignal): Promise<void>;
}

/**
 * Reads `authentication.x509.clientCAFile`. Rejects with AgentError Invalid if there is no usable bundle in it. A bundle
 * that becomes unusable later is a warning, and the last good one stays.
 */
export async function loadClientCA(options: {
  file: string;
  /** Feature gate ReloadKubeletClientCAFile. */
  reload: boolean;
  clock: Clock;
  log: Logger;
}): Promise<ClientCA> {
  const { file, ...rest } = options;
  const bundle = await loadReloaded({
    ...rest,
    what: "authentication.x509.clientCAFile",
    files: [file],
    read: ([pem = Buffer.alloc(0)]) => ({ pem, roots: readBundle(pem) }),
  });
  return {
    current: () => bundle.current().pem,
    roots: () => bundle.current().roots,
    subscribe: bundle.subscribe,
    run: bundle.run,
  };
}
