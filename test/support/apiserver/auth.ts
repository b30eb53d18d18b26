import type { TLSSocket } from "node:tls";
import type { Exchange } from "./exchange.ts";
import { ApiError, forbidden } from "./status.ts";
import type { TokenAuthority } from "./tokens.ts";
import type { AccessAttributes, User } from "./types.ts";

/** Answers whether a request is allowed; a string says why not. */
export type Authorizer = (attributes: AccessAttributes) => boolean | string;

// What a cluster shows to anyone (the system:public-info-viewer role).
const publicPaths = /^\/(healthz|livez|readyz|version)(\/|$)/;

/** Finds out who sends a request: client certificate, static token, service account token. Throws 401. */
export function authenticate(exchange: Exchange, tokens: TokenAuthority, known: ReadonlyMap<string, User>): User {
  const user = identify(exchange, tokens, known);
  if (user === undefined) {
    if (publicPaths.test(exchange.url.pathname)) {
      return { name: "system:anonymous", groups: ["system:unauthenticated"] };
    }
    throw new ApiError(401, "Unauthorized", "Unauthorized");
  }
  const impersonated = exchange.header("impersonate-user");
  if (impersonated === undefined) return user;
  const groups = (exchange.header("impersonate-group") ?? "").split(",").map((g) => g.trim());
  return { name: impersonated, groups: [...groups.filter((g) => g !== ""), "system:authenticated"] };
}

function identify(exchange: Exchange, tokens: TokenAuthority, known: ReadonlyMap<string, User>): User | undefined {
  const byCertificate = certificateUser(tlsSocketOf(exchange));
  if (byCertificate !== undefined) return byCertificate;
  const token = /^bearer\s+(\S+)\s*$/i.exec(exchange.header("authorization") ?? "")?.[1];
  if (token === undefined) return undefined;
  return known.get(token) ?? tokens.authenticate(token)?.user;
}

function tlsSocketOf({ request }: Exchange): TLSSocket | undefined {
  const socket = "stream" in request ? request.stream.session?.socket : request.socket;
  return socket as TLSSocket | undefined;
}

const bySocket = new WeakMap<object, { user: User | undefined }>();

function certificateUser(socket: TLSSocket | undefined): User | undefined {
  if (socket === undefined) return undefined;
  const remembered = bySocket.get(socket);
  if (remembered !== undefined) return remembered.user;
  let user: User | undefined;
  const certificate = socket.authorized ? socket.getPeerCertificate() : undefined;
  const commonName = certificate?.subject?.CN;
  if (typeof commonName === "string" && commonName !== "") {
    const organization: unknown = certificate?.subject?.O;
    const groups = Array.isArray(organization)
      ? organization.map(String)
      : typeof organization === "string"
        ? [organization]
        : [];
    user = { name: commonName, groups: [...groups, "system:authenticated"] };
  }
  bySocket.set(socket, { user });
  return user;
}

/** Throws 403 unless `authorizer` allows the request. */
export function authorize(authorizer: Authorizer | undefined, attributes: AccessAttributes): void {
  const answer = authorizer?.(attributes) ?? true;
  if (answer === true) return;
  const { user, verb, group, resource, subresource, namespace, name, path } = attributes;
  const reason = typeof answer === "string" ? `: ${answer}` : "";
  if (path !== undefined) {
    throw new ApiError(403, "Forbidden", `forbidden: User "${user.name}" cannot ${verb} path "${path}"${reason}`);
  }
  const full = subresource === "" ? resource : `${resource}/${subresource}`;
  const where = namespace === "" ? "at the cluster scope" : `in the namespace "${namespace}"`;
  throw forbidden(
    { group, plural: resource },
    name,
    `User "${user.name}" cannot ${verb} resource "${full}" in API group "${group}" ${where}${reason}`,
  );
}
