import { pathBytesMax } from "./limits.ts";
import { cleanPath, decodePercent, parseTarget } from "./path.ts";
import { type Handler, HttpError, type UpgradeHandler } from "./port.ts";
import { plainError } from "./respond.ts";

/** One operation of a service. */
export interface Endpoint {
  readonly methods: readonly string[];
  /** Decoded segments; `{name}` takes one, `{name*}` at the end takes the rest, slashes included. */
  readonly template: string;
  readonly handler: Handler;
  /** Serves requests that want to leave HTTP. Without it they are served as ordinary ones. */
  readonly upgrade?: UpgradeHandler;
  /** The answer is JSON, and a client that accepts none is told so. */
  readonly isJson?: boolean;
}

/**
 * What is registered at a path. `exact`: this path alone, with any method. `below`: a root that ends in "/" and
 * everything below, with any method. `service`: endpoints below a root; a root that ends in "/" is not reachable
 * without it.
 */
export type Route =
  | { readonly kind: "exact"; readonly path: string; readonly handler: Handler }
  | { readonly kind: "below"; readonly path: string; readonly handler: Handler }
  | { readonly kind: "service"; readonly path: string; readonly endpoints: readonly Endpoint[] };

export interface RoutedRequest {
  readonly method: string;
  /** The request line's target. */
  readonly url: string;
  /** The Accept header. */
  readonly accept: string | undefined;
}

/**
 * Where a request goes. `answer`: nowhere, and anybody may know. `refuse`: nowhere, but only who is authorized for
 * `path` learns why. `serve`: to a handler.
 */
export type Match =
  | { readonly kind: "answer"; readonly error: HttpError }
  | { readonly kind: "refuse"; readonly path: string; readonly error: HttpError }
  | ServeMatch;

/** See {@link Match}. */
export interface ServeMatch extends Destination {
  readonly kind: "serve";
  /** Decoded. */
  readonly path: string;
  /** Not parsed yet: it may be long, and nobody has been authenticated. */
  readonly query: string;
}

interface Destination {
  readonly handler: Handler;
  readonly upgrade?: UpgradeHandler;
  readonly params: Readonly<Record<string, string>>;
}

/**
 * Finds the route of a request, in two steps as the reference does, since both show from outside. The first looks at
 * the path as it was sent, and redirects or answers 404 before anybody has been authenticated. The second looks at the
 * decoded path, the method and the Accept header.
 */
export function matchRoute(routes: readonly Route[], { method, url, accept }: RoutedRequest): Match {
  const target = parseTarget(url);
  if (target === undefined) return { kind: "answer", error: badRequest };
  const { escapedPath, query } = target;
  if (escapedPath.length > pathBytesMax) return { kind: "answer", error: plainError(414, "414 URI Too Long") };
  const suffix = query === "" ? "" : `?${query}`;
  const cleaned = cleanPath(escapedPath);
  const segments = cleaned
    .split("/", rootSegmentsMax + 2)
    .slice(1)
    .map(decodePercent);
  const route = routes.find((candidate) => isAtRoute(candidate, segments));
  const below = [...segments, ""];
  if (route === undefined && routes.some((candidate) => isAtRoute(candidate, below))) {
    return { kind: "answer", error: redirect(307, `${cleaned}/${suffix}`, method) };
  }
  if (cleaned !== escapedPath) return { kind: "answer", error: redirect(301, `${cleaned}${suffix}`, method) };
  if (route === undefined) return { kind: "answer", error: plainError(404, "404 page not found") };

  const path = decodePercent(escapedPath);
  const found =
    route.kind === "service" ? matchEndpoint(route.endpoints, { method, path, accept }) : { ...route, params: {} };
  if (found instanceof HttpError) return { kind: "refuse", path, error: found };
  const { handler, params, upgrade } = found;
  const base = { kind: "serve", path, query, handler, params } as const;
  return upgrade === undefined ? base : { ...base, upgrade };
}

const badRequest = new HttpError(400, "400 Bad Request", { Connection: "close" });

function redirect(status: 301 | 307, to: string, method: string): HttpError {
  // Browsers read a backslash as a slash, and "/\\host" as another host.
  const location = to.replaceAll("\\", "%5C");
  const text = location
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&#34;");
  const title = status === 301 ? "Moved Permanently" : "Temporary Redirect";
  const body = method === "GET" ? `<a href="${text}">${title}</a>.\n\n` : "";
  return new HttpError(status, body, { Location: location, "Content-Type": "text/html; charset=utf-8" });
}

// The longest root is /debug/flags/v. More segments than that are not looked at.
const rootSegmentsMax = 3;

/** @param segments the path's first ones, each decoded: one that holds an escaped slash matches nothing */
function isAtRoute({ kind, path }: Route, segments: readonly string[]): boolean {
  const own = path.split("/").slice(1);
  if (own.at(-1) === "") return segments.length >= own.length && own.slice(0, -1).every((s, i) => s === segments[i]);
  const isLong = kind === "service" && segments.length > own.length;
  return (segments.length === own.length || isLong) && own.every((segment, i) => segment === segments[i]);
}

interface Asked {
  method: string;
  path: string;
  accept: string | undefined;
}

function matchEndpoint(endpoints: readonly Endpoint[], { method, path, accept }: Asked): Destination | HttpError {
  const atPath = endpoints.flatMap((endpoint) => {
    const params = matchTemplate(endpoint.template, path);
    return params === undefined ? [] : [{ ...endpoint, params }];
  });
  if (atPath.length === 0) return new HttpError(404, "404: Page Not Found");
  const found = atPath.find(({ methods }) => methods.includes(method));
  if (found === undefined) {
    const allowed = [...new Set(atPath.flatMap(({ methods }) => methods))].join(", ");
    return new HttpError(405, "405: Method Not Allowed", { Allow: allowed });
  }
  if (found.isJson === true && !acceptsJson(accept)) {
    return new HttpError(406, "406: Not Acceptable\n\nAvailable representations: application/json");
  }
  return found;
}

/** @returns the template's values, or undefined where the path is another one. A slash at the end does not count. */
function matchTemplate(template: string, path: string): Record<string, string> | undefined {
  const wanted = template.split("/").slice(1);
  const rest = wanted.at(-1)?.endsWith("*}") === true ? wanted.pop() : undefined;
  const given = path.split("/").slice(1);
  if (rest === undefined) while (given.at(-1) === "" && given.length > wanted.length) given.pop();
  if (rest === undefined ? given.length !== wanted.length : given.length <= wanted.length) return undefined;
  const params: Record<string, string> = {};
  for (const [i, segment] of wanted.entries()) {
    const value = given[i] ?? "";
    if (segment.startsWith("{")) params[segment.slice(1, -1)] = value;
    else if (segment !== value) return undefined;
  }
  if (rest !== undefined) params[rest.slice(1, -2)] = given.slice(wanted.length).join("/");
  return params;
}

// Browsers send some 150.
const acceptCharsMax = 4_096;

// Quality values are not looked at, as in the reference.
function acceptsJson(accept: string | undefined): boolean {
  if (accept === undefined || accept === "") return true;
  return accept
    .slice(0, acceptCharsMax)
    .split(",")
    .some((part) => {
      const type = part.split(";", 1)[0]?.trim();
      return type === "*/*" || type === "application/json";
    });
}
