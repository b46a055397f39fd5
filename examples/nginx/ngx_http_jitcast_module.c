/*
 * Locations of nginx that are answered by published functions.
 *
 *     jitcast_socket /run/jitcast.sock;           http: where the compiler process is
 *     jitcast_handler page;                       location: who answers
 *     jitcast_header X-Version stamp;             location: who makes a header of every answer
 *
 * A handler is `int64_t page(const char *uri, int64_t uri_len, char *body, int64_t capacity)`: the length of the body that it wrote,
 * or a status of HTTP, negated. A header is made by `int64_t stamp(int64_t status, char *value, int64_t capacity)`: the length of
 * the value, 0 for no header. Names that nobody has published are answered with 503, and make no header.
 *
 * A request is one guard: body and header are of one generation. Between requests a worker is inside nothing, and holds no
 * memory back, however long it idles; it needs no timer while there is a compiler process. The server starts without one, too.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>

#include <jitcast.h>

#define BODY_CAPACITY 65536
#define HEADER_CAPACITY 256
/* While there is no compiler process, milliseconds. */
#define RETRY 1000

typedef int64_t (*jitcast_page)(const char *uri, int64_t uri_len, char *body, int64_t capacity);
typedef int64_t (*jitcast_stamp)(int64_t status, char *value, int64_t capacity);

/* A function that the configuration names. A worker process has its own copy of this, as of all that is configured. */
typedef struct {
    ngx_str_t name; /* ends with a 0 */
    const char *signature;
    jitcast_code fallback;
    jitcast_handle *handle;
} function_t;

typedef struct {
    ngx_str_t socket; /* ends with a 0 */
    ngx_array_t functions; /* of function_t * */
} main_conf_t;

typedef struct {
    function_t *handler;
    ngx_str_t header;
    function_t *stamp;
} location_conf_t;

/* What this worker process has. */
static jitcast_worker *worker;
static jitcast_thread *thread;
static ngx_connection_t *watched;
static ngx_event_t retry;

static void look(ngx_event_t *event);

ngx_module_t ngx_http_jitcast_module;
static ngx_http_output_header_filter_pt next_header_filter;

static int64_t no_page(const char *uri, int64_t uri_len, char *body, int64_t capacity)
{
    (void)uri, (void)uri_len, (void)body, (void)capacity;
    return -NGX_HTTP_SERVICE_UNAVAILABLE;
}

static int64_t no_stamp(int64_t status, char *value, int64_t capacity)
{
    (void)status, (void)value, (void)capacity;
    return 0;
}

/* What to call for a function, which may be the host's own; in a guard, or without one if `inside` is 0. */
static jitcast_code code_of(const function_t *function, ngx_uint_t inside)
{
    return inside && function->handle != NULL ? jitcast_address(function->handle) : function->fallback;
}

/* The guard of a request: 0 if there can be none, which the log says. Published code is not called then. */
static ngx_uint_t enter(ngx_log_t *log)
{
    if (thread == NULL && jitcast_thread_of(worker, &thread) != JITCAST_STATUS_OK)
        return 0; /* Not attached yet. */
    if (jitcast_thread_enter(thread, NULL) == JITCAST_STATUS_OK)
        return 1;
    ngx_log_error(NGX_LOG_ERR, log, 0, "jitcast: %s", jitcast_last_error());
    return 0;
}

static void leave(ngx_uint_t inside)
{
    if (inside)
        (void)jitcast_thread_leave(thread);
}

/* In a guard. */
static ngx_int_t answer(ngx_http_request_t *r, const function_t *handler, ngx_uint_t inside)
{
    ngx_buf_t *body = ngx_create_temp_buf(r->pool, BODY_CAPACITY);
    ngx_chain_t out = {body, NULL};
    ngx_int_t rc;
    int64_t n;
    if (body == NULL)
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    n = ((jitcast_page)code_of(handler, inside))((const char *)r->uri.data, (int64_t)r->uri.len,
                                                 (char *)body->pos, BODY_CAPACITY);
    if (n < 0 || n > BODY_CAPACITY) {
        if (n <= -NGX_HTTP_SPECIAL_RESPONSE && n > -600)
            return (ngx_int_t)-n;
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0, "jitcast: `%V` returned %L", &handler->name, n);
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }
    body->last = body->pos + n;
    body->last_buf = r == r->main;
    body->last_in_chain = 1;
    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = n;
    ngx_str_set(&r->headers_out.content_type, "text/plain");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    rc = ngx_http_send_header(r);
    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only || n == 0)
        return rc;
    return ngx_http_output_filter(r, &out);
}

static ngx_int_t handle_request(ngx_http_request_t *r)
{
    const location_conf_t *conf = ngx_http_get_module_loc_conf(r, ngx_http_jitcast_module);
    ngx_int_t rc = ngx_http_discard_request_body(r);
    ngx_uint_t inside;
    if (rc != NGX_OK)
        return rc;
    inside = enter(r->connection->log);
    rc = answer(r, conf->handler, inside);
    leave(inside);
    return rc;
}

static ngx_int_t add_header(ngx_http_request_t *r, const location_conf_t *conf, ngx_uint_t inside)
{
    ngx_table_elt_t *header;
    u_char *value = ngx_pnalloc(r->pool, HEADER_CAPACITY);
    int64_t n, i;
    if (value == NULL)
        return NGX_ERROR;
    n = ((jitcast_stamp)code_of(conf->stamp, inside))((int64_t)r->headers_out.status, (char *)value,
                                                      HEADER_CAPACITY);
    if (n <= 0 || n > HEADER_CAPACITY)
        return NGX_OK;
    /* What would end the header, or begin another one. */
    for (i = 0; i < n; i++) {
        if (value[i] < ' ' || value[i] == 0x7f)
            return NGX_OK;
    }
    header = ngx_list_push(&r->headers_out.headers);
    if (header == NULL)
        return NGX_ERROR;
    ngx_memzero(header, sizeof(*header));
    header->hash = 1;
    header->key = conf->header;
    header->value.data = value;
    header->value.len = (size_t)n;
    return NGX_OK;
}

static ngx_int_t filter_header(ngx_http_request_t *r)
{
    const location_conf_t *conf = ngx_http_get_module_loc_conf(r, ngx_http_jitcast_module);
    if (conf->stamp != NULL && r == r->main) {
        /* Inside that of the handler, if it is ours: then this one is free, and of the same generation. */
        ngx_uint_t inside = enter(r->connection->log);
        ngx_int_t rc = add_header(r, conf, inside);
        leave(inside);
        if (rc != NGX_OK)
            return rc;
    }
    return next_header_filter(r);
}

/* Makes the handles, whose fallbacks serve until the names are published. */
static void find_functions(const main_conf_t *conf, ngx_log_t *log)
{
    function_t **functions = conf->functions.elts;
    ngx_uint_t i;
    for (i = 0; i < conf->functions.nelts; i++) {
        function_t *f = functions[i];
        const char *name = (const char *)f->name.data;
        jitcast_status status = jitcast_function(worker, name, f->signature, f->fallback, &f->handle);
        if (status != JITCAST_STATUS_OK)
            ngx_log_error(NGX_LOG_ERR, log, 0, "jitcast: `%V` stays the server's own: %s", &f->name,
                          jitcast_last_error());
    }
}

/* Watches the connection, or, while there is none, looks now and then. The timer keeps no worker that is to end. */
static void watch(void)
{
    if (!jitcast_is_connected(worker)) {
        if (!retry.timer_set)
            ngx_add_timer(&retry, RETRY);
        return;
    }
    if (watched == NULL) {
        watched = ngx_get_connection(jitcast_fd(worker), retry.log);
        if (watched == NULL)
            return;
        watched->read->handler = look;
        watched->read->log = retry.log;
    }
    if (!watched->read->active && ngx_add_event(watched->read, NGX_READ_EVENT, NGX_CLEAR_EVENT) != NGX_OK)
        ngx_log_error(NGX_LOG_ERR, retry.log, 0, "jitcast: the connection cannot be watched");
}

/* Something has come over the connection, or it is time to look for another one. */
static void look(ngx_event_t *event)
{
    (void)event;
    (void)jitcast_tend(worker);
    watch();
}

/* What no call returns. */
static void tell(void *log, jitcast_event event, const char *text)
{
    ngx_uint_t level = event == JITCAST_EVENT_NOT_ATTACHED ? NGX_LOG_INFO : NGX_LOG_WARN;
    ngx_log_error(level, (ngx_log_t *)log, 0, "jitcast: %s", text);
    if (event == JITCAST_EVENT_DISCONNECTED && watched != NULL && watched->read->active)
        /* The next connection has the same number, and epoll(7) would not know it. */
        (void)ngx_del_event(watched->read, NGX_READ_EVENT, 0);
    if (event == JITCAST_EVENT_DISCONNECTED || event == JITCAST_EVENT_RENEWED)
        watch();
}

static ngx_int_t init_process(ngx_cycle_t *cycle)
{
    const main_conf_t *conf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_jitcast_module);
    jitcast_options options = {0};
    if (conf == NULL || conf->functions.nelts == 0)
        return NGX_OK;
    options.size = sizeof(options);
    options.label = "nginx";
    options.flags = JITCAST_LATE;
    options.log = tell;
    options.log_context = cycle->log;
    retry.handler = look;
    retry.log = cycle->log;
    retry.cancelable = 1;
    if (jitcast_attach_path((const char *)conf->socket.data, &options, &worker) != JITCAST_STATUS_OK) {
        ngx_log_error(NGX_LOG_ERR, cycle->log, 0, "jitcast: %s", jitcast_last_error());
        return NGX_ERROR;
    }
    find_functions(conf, cycle->log);
    watch();
    return NGX_OK;
}

static void exit_process(ngx_cycle_t *cycle)
{
    (void)cycle;
    if (retry.timer_set)
        ngx_del_timer(&retry);
    if (watched != NULL) {
        if (watched->read->active)
            (void)ngx_del_event(watched->read, NGX_READ_EVENT, 0);
        ngx_free_connection(watched);
        watched->fd = (ngx_socket_t)-1;
        watched = NULL;
    }
    /* Destructors of published code run. */
    thread = NULL;
    (void)jitcast_detach(worker);
    worker = NULL;
}

static void *create_main_conf(ngx_conf_t *cf)
{
    main_conf_t *conf = ngx_pcalloc(cf->pool, sizeof(*conf));
    if (conf == NULL || ngx_array_init(&conf->functions, cf->pool, 4, sizeof(function_t *)) != NGX_OK)
        return NULL;
    return conf;
}

static char *init_main_conf(ngx_conf_t *cf, void *data)
{
    main_conf_t *conf = data;
    if (conf->functions.nelts == 0 || conf->socket.len != 0)
        return NGX_CONF_OK;
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "jitcast_socket is missing: say where the compiler process listens");
    return NGX_CONF_ERROR;
}

static void *create_location_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(location_conf_t));
}

static char *merge_location_conf(ngx_conf_t *cf, void *outer, void *data)
{
    const location_conf_t *parent = outer;
    location_conf_t *conf = data;
    (void)cf;
    /* A header is inherited; who answers is not, as with nginx's own modules. */
    if (conf->stamp == NULL) {
        conf->header = parent->header;
        conf->stamp = parent->stamp;
    }
    return NGX_CONF_OK;
}

static function_t *add_function(ngx_conf_t *cf, const ngx_str_t *name, const char *signature, jitcast_code fallback)
{
    main_conf_t *conf = ngx_http_conf_get_module_main_conf(cf, ngx_http_jitcast_module);
    function_t **place = ngx_array_push(&conf->functions);
    function_t *function = ngx_pcalloc(cf->pool, sizeof(*function));
    if (place == NULL || function == NULL)
        return NULL;
    function->name = *name;
    function->signature = signature;
    function->fallback = fallback;
    *place = function;
    return function;
}

static char *set_handler(ngx_conf_t *cf, ngx_command_t *command, void *data)
{
    location_conf_t *conf = data;
    ngx_str_t *args = cf->args->elts;
    ngx_http_core_loc_conf_t *core = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    (void)command;
    if (conf->handler != NULL)
        return "is duplicate";
    conf->handler = add_function(cf, &args[1], "(i64, i64, i64, i64) -> i64", (jitcast_code)no_page);
    if (conf->handler == NULL)
        return NGX_CONF_ERROR;
    core->handler = handle_request;
    return NGX_CONF_OK;
}

static char *set_header(ngx_conf_t *cf, ngx_command_t *command, void *data)
{
    location_conf_t *conf = data;
    ngx_str_t *args = cf->args->elts;
    (void)command;
    if (conf->stamp != NULL)
        return "is duplicate";
    conf->header = args[1];
    conf->stamp = add_function(cf, &args[2], "(i64, i64, i64) -> i64", (jitcast_code)no_stamp);
    return conf->stamp == NULL ? NGX_CONF_ERROR : NGX_CONF_OK;
}

static ngx_int_t install_filter(ngx_conf_t *cf)
{
    (void)cf;
    next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = filter_header;
    return NGX_OK;
}

static ngx_command_t commands[] = {
    {ngx_string("jitcast_socket"), NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1, ngx_conf_set_str_slot,
     NGX_HTTP_MAIN_CONF_OFFSET, offsetof(main_conf_t, socket), NULL},
    {ngx_string("jitcast_handler"), NGX_HTTP_LOC_CONF | NGX_CONF_TAKE1, set_handler, NGX_HTTP_LOC_CONF_OFFSET, 0,
     NULL},
    {ngx_string("jitcast_header"), NGX_HTTP_MAIN_CONF | NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_TAKE2,
     set_header, NGX_HTTP_LOC_CONF_OFFSET, 0, NULL},
    ngx_null_command,
};

static ngx_http_module_t context = {
    NULL,                 /* preconfiguration */
    install_filter,       /* postconfiguration */
    create_main_conf,     /* create main configuration */
    init_main_conf,       /* init main configuration */
    NULL,                 /* create server configuration */
    NULL,                 /* merge server configuration */
    create_location_conf, /* create location configuration */
    merge_location_conf,  /* merge location configuration */
};

ngx_module_t ngx_http_jitcast_module = {
    NGX_MODULE_V1,
    &context,
    commands,
    NGX_HTTP_MODULE,
    NULL,         /* init master */
    NULL,         /* init module */
    init_process, /* init process */
    NULL,         /* init thread */
    NULL,         /* exit thread */
    exit_process, /* exit process */
    NULL,         /* exit master */
    NGX_MODULE_V1_PADDING,
};
