import type { Container } from "../kube/types.ts";

/**
 * Port of a handler: a number, a number as text, or the name of one of the container's ports.
 *
 * @throws Error with a text for people
 */
export function handlerPort(port: number | string, { ports = [] }: Container): number {
  const named = typeof port === "string" && !/^\d+$/.test(port);
  const number = named ? ports.find(({ name }) => name === port)?.containerPort : Number(port);
  if (number === undefined) throw new Error(`couldn't find port: ${JSON.stringify(port)} in container`);
  if (!Number.isInteger(number) || number < 1 || number > 65_535) {
    throw new Error(`invalid port number: ${number}`);
  }
  return number;
}

/**
 * Host of a handler: its own, else the pod's address.
 *
 * @throws Error with a text for people if there is neither; an empty host would mean the node itself
 */
export function handlerHost(host: string | undefined, podIP: string): string {
  if (host !== undefined && host !== "") return host;
  if (podIP === "") throw new Error("the pod has no IP address yet");
  return podIP;
}

/** `host:port`, an IPv6 address in brackets. */
export function hostPort(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}
