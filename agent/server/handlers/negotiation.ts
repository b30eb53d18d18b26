import type { IncomingMessage } from "node:http";
import { HttpError } from "../port.ts";

/** How a z-page is wanted. */
export type ZPageFormat = { kind: "text" } | { kind: "json" | "yaml"; version: string; isDeprecated: boolean };

const group = "config.k8s.io";
const versions = [
  { version: "v1beta1", isDeprecated: false },
  { version: "v1alpha1", isDeprecated: true },
];

/**
 * Chooses the form of a z-page from the Accept header. Structured forms have to be asked for with kind, group and
 * version: `application/json;as=Statusz;v=v1beta1;g=config.k8s.io`. The first type that we have wins.
 *
 * @param kind of the structured form
 * @returns undefined when nothing that we have is accepted
 */
export function chooseFormat(accept: string | undefined, kind: string): ZPageFormat | undefined {
  if (accept === undefined || accept.trim() === "") return { kind: "text" };
  for (const part of accept.split(",")) {
    const [type = "", ...rest] = part.split(";").map((piece) => piece.trim());
    const params = new Map(rest.map((pair) => pair.split("=", 2) as [string, string]));
    const form = type === "application/json" ? "json" : type === "application/yaml" ? "yaml" : undefined;
    if (form === undefined) {
      if (type === "*/*" || type === "text/*" || type === "text/plain") return { kind: "text" };
      continue;
    }
    const found = versions.find(({ version }) => version === params.get("v"));
    if (found !== undefined && params.get("as") === kind && params.get("g") === group) return { kind: form, ...found };
  }
  return undefined;
}

/** What a structured z-page starts with. */
export function zPageType(kind: string, version: string): { kind: string; apiVersion: string } {
  return { kind, apiVersion: `${group}/${version}` };
}

/** As {@link chooseFormat}, but rejects what cannot be served. Throws HttpError 406. */
export function formatFor({ headers }: IncomingMessage, kind: string): ZPageFormat {
  const format = chooseFormat(headers.accept, kind);
  if (format !== undefined) return format;
  const structured = `application/json;as=${kind};v=v1beta1;g=${group}`;
  throw new HttpError(406, `not acceptable: available are text/plain and ${structured} (or application/yaml)\n`);
}
