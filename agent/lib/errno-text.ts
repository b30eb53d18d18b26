import { messageOf } from "./errors.ts";

const texts: Readonly<Record<string, string>> = {
  ECONNREFUSED: "connection refused",
  ECONNRESET: "connection reset by peer",
  EHOSTUNREACH: "no route to host",
  ENETUNREACH: "network is unreachable",
  ETIMEDOUT: "i/o timeout",
  EPIPE: "broken pipe",
};

/**
 * A network error in the words that people of this field search for: `dial tcp 10.0.0.1:80: connect: connection refused`.
 */
export function errnoText(err: unknown): string {
  if (err instanceof AggregateError && err.errors.length > 0) return errnoText(err.errors[0]);
  if (!(err instanceof Error)) return String(err);
  const { code, syscall, address, port } = err as NodeJS.ErrnoException & { address?: string; port?: number };
  if (code === "ENOTFOUND" || code === "EAI_AGAIN") return `dial tcp: lookup ${hostnameOf(err)}: no such host`;
  const text = code === undefined ? undefined : texts[code];
  if (text === undefined) return messageOf(err);
  if (syscall !== "connect" || address === undefined) return `${syscall ?? "read"} tcp: ${text}`;
  const host = address.includes(":") ? `[${address}]` : address;
  return `dial tcp ${host}:${port ?? 0}: connect: ${text}`;
}

function hostnameOf(err: Error): string {
  return (err as Error & { hostname?: string }).hostname ?? "host";
}
