/* Figures in SVG: panels with axes, curves, marked points, bars; a legend. The colours are Okabe
   and Ito's, which the colour-blind can tell apart; each series also has its own dashes and
   markers, so that no colour alone tells anything. Light or dark, as the viewer prefers. */

/* A point of a frontier. Points of one series are joined by a line, in the order of x. */
typedef struct frontier_point {
    double x, y;
    const char *label;  /* beside the point; may be NULL */
    const char *series; /* in the legend; may be NULL    */
} frontier_point;

enum {
    FIGURE_STYLES = 7,  /* colours, dashes, markers; series beyond them get other pairs */
    FIGURE_PANELS = 12, /* of a figure, at the most */
    FIGURE_TICKS = 24,
    FIGURE_DECIMALS = 5, /* of a tick, at the most; others are written with an exponent */
    FIGURE_LEFT = 68,    /* margins of a panel */
    FIGURE_RIGHT = 20,
    FIGURE_TOP = 34,
    FIGURE_BOTTOM = 50,
    FIGURE_LABEL = 48 /* characters of a name that are shown */
};

typedef enum figure_kind {
    FIGURE_LINES,  /* a curve; a few markers on it if there are several */
    FIGURE_POINTS, /* marked and labelled points, joined by a line      */
    FIGURE_BARS    /* x [n + 1] are the edges of bars y [n]             */
} figure_kind;

/* Numbers, `stride` apart, borrowed. NaN: a gap. */
typedef struct figure_series {
    const char *name;
    const double *x, *y;
    int64_t n, stride;
    const char *const *label; /* [n] of points; may be NULL */
} figure_series;

typedef struct figure_panel {
    const char *x_name, *y_name;
    figure_kind kind;
    const figure_series *series; /* [n] */
    int n;
} figure_panel;

typedef struct figure {
    const char *title;
    const figure_panel *panel; /* [panels]; series i has one style in all of them */
    int panels;
} figure;

/* ---- text */

/* What is not printed as it is, and what XML does not allow. */
static int is_unwelcome(uint32_t c) {
    return is_unsafe(c) || c == 0xFFFE || c == 0xFFFF;
}

/* Prints a name as text of an XML file. Of more than `max` characters the middle is left out: the
   ends tell paths apart. */
static void put_xml(FILE *f, const char *s, int max) {
    const int64_t n = (int64_t)strlen(s);
    int shown = 0, all = 0;
    uint32_t c;
    for (int64_t i = 0; i < n; all++) i += bpe_char(s + i, n - i, &c);
    for (int64_t i = 0, length; i < n; i += length, shown++) {
        length = bpe_char(s + i, n - i, &c);
        if (all > max && shown == max / 2) fputs("\xE2\x80\xA6", f);
        if (all > max && shown >= max / 2 && shown < all - max / 2) continue;
        if (c >= BPE_RAW || is_unwelcome(c))
            fputs("\xEF\xBF\xBD", f);
        else if (c == '&' || c == '<' || c == '>' || c == '"')
            fprintf(f, "&#%d;", (int)c);
        else
            fwrite(s + i, 1, (size_t)length, f);
    }
}

/* What a key of logs and evaluations is called on an axis, with its unit. */
static const char *axis_name(const char *key) {
    static const char *const names[][2] = {
        {"step", "step"},
        {"loss", "loss"},
        {"mse_loss", "MSE (mean squared distance)"},
        {"sparsity_loss", "sparsity loss"},
        {"ghost_loss", "loss of ghost gradients or AuxK"},
        {"pre_act_loss", "pre-activation loss"},
        {"sparsity_penalty", "weight of the sparsity loss"},
        {"l0", "L0 (active features per row)"},
        {"dead", "dead features"},
        {"lr", "learning rate"},
        {"k", "k (features kept per row)"},
        {"rows_per_second", "rows per second"},
        {"variance_explained", "variance explained (share)"},
        {"ce_recovered", "cross-entropy recovered (share)"},
        {"percent_recovered", "cross-entropy recovered (share)"},
        {"percent_alive", "features alive (share)"},
        {"ce_diff", "increase of cross-entropy (nats per token)"},
        {"steps", "steps"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(key, names[i][0])) return names[i][1];
    return key;
}

/* ---- axes */

typedef struct axis {
    double low, high;
    int log, powers; /* powers: a tick is a power of ten, written as such */
    double tick[FIGURE_TICKS];
    int ticks;
    double unit; /* 1000: numbers end in k */
    int decimals;
    double from, to; /* of `low` and `high`, in pixels */
} axis;

/* Where a number stands, in pixels. */
static double axis_at(const axis *a, double value) {
    const double part = a->log ? (log(value) - log(a->low)) / (log(a->high) - log(a->low))
                               : (value - a->low) / (a->high - a->low);
    return a->from + part * (a->to - a->from);
}

/* The smallest of 1, 2 and 5 times a power of ten that is at least `step`. */
static double round_step(double step) {
    const double power = pow(10, floor(log10(step)));
    const double m = step / power;
    return (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10) * power;
}

/* Ticks at multiples of a round number, about five. snug: the axis ends where the data do. whole:
   counts have no fractions. */
static void linear_ticks(axis *a, int snug, int whole) {
    double step = round_step((a->high - a->low) / 5.5);
    if (whole && step < 1) step = 1;
    if (!snug) a->low = floor(a->low / step + 1e-9) * step;
    if (!snug) a->high = ceil(a->high / step - 1e-9) * step;
    const double largest = fabs(a->low) > fabs(a->high) ? fabs(a->low) : fabs(a->high);
    a->unit = largest >= 1e4 && step >= 100 ? 1000 : 1;
    a->decimals = (int)ceil(-log10(step / a->unit) - 1e-9);
    if (a->decimals < 0) a->decimals = 0;
    if (largest >= 1e7) a->decimals = FIGURE_DECIMALS + 1;
    for (double i = ceil(a->low / step - 1e-9); a->ticks < FIGURE_TICKS; i++) {
        if (i * step > a->high + step * 1e-9) return;
        a->tick[a->ticks++] = i * step;
    }
}

/* Ticks at powers of ten; of fewer than two decades also at 2 and 5 times such. */
static void log_ticks(axis *a, int snug) {
    static const double between[] = {1, 2, 5};
    const double decades = log10(a->high) - log10(a->low);
    if (decades > 2 && !snug) {
        a->low = pow(10, floor(log10(a->low) + 1e-9));
        a->high = pow(10, ceil(log10(a->high) - 1e-9));
    } else if (!snug) {
        a->low /= 1.15, a->high *= 1.15; /* air beside the first and last number */
    }
    const int first = (int)floor(log10(a->low)), last = (int)ceil(log10(a->high));
    const int every = decades > 2 && last - first > 9 ? (last - first) / 6 + 1 : 1;
    a->powers = decades > 2 && (first < -3 || last > 4) && first > -100 && last < 100;
    for (int e = first; e <= last; e += every) {
        for (int m = 0; m < (decades > 2 ? 1 : 3) && a->ticks < FIGURE_TICKS; m++) {
            const double tick = between[m] * (e < 0 ? 1 / pow(10, -e) : pow(10, e));
            if (tick >= a->low * (1 - 1e-9) && tick <= a->high * (1 + 1e-9))
                a->tick[a->ticks++] = tick;
        }
    }
}

/* An axis of numbers from low to high. Logarithmic where they are positive and span a decade. */
static axis make_axis(double low, double high, int may_log, int snug, int whole) {
    axis a;
    memset(&a, 0, sizeof a);
    if (!(low <= high)) low = 0, high = 1; /* no numbers */
    a.log = may_log && low > 1e-300 && high >= 10 * low;
    /* a single one, in the middle; 0 is mostly a count. Of a narrower range a step would be 0 */
    if (!(high - low > 1e-290)) {
        const double room = 0.1 * fabs(low);
        high += room > 1e-290 ? room : 1;
        low -= room;
        snug = 0;
    }
    a.low = low, a.high = high, a.unit = 1;
    if (a.log)
        log_ticks(&a, snug);
    else
        linear_ticks(&a, snug, whole);
    return a;
}

/* The text of a tick. */
static const char *tick_text(const axis *a, double value, char *text, size_t size) {
    static const char *const raised[] = {
        "\xE2\x81\xB0", "\xC2\xB9",     "\xC2\xB2",     "\xC2\xB3",     "\xE2\x81\xB4",
        "\xE2\x81\xB5", "\xE2\x81\xB6", "\xE2\x81\xB7", "\xE2\x81\xB8", "\xE2\x81\xB9"};
    const int power = (int)floor(log10(value > 0 ? value : 1) + 0.5), digits = abs(power);
    if (!(value < 0 || value > 0))
        snprintf(text, size, "0");
    else if (a->powers)
        snprintf(text, size, "10%s%s%s", power < 0 ? "\xE2\x81\xBB" : "",
                 digits > 9 ? raised[digits / 10 % 10] : "", raised[digits % 10]);
    else if (a->log || a->decimals > FIGURE_DECIMALS)
        snprintf(text, size, "%g", value);
    else
        snprintf(text, size, "%.*f%s", a->decimals, value / a->unit, a->unit > 1 ? "k" : "");
    return text;
}

/* ---- what is drawn */

static const char figure_style[] =
    "<style>\n"
    "text{font:12px system-ui,sans-serif;fill:#222;unicode-bidi:isolate}\n"
    ".title{font-size:16px;font-weight:600}.head{font-size:13px;font-weight:600}\n"
    ".back{fill:#fff}.axis{stroke:#555}.grid{stroke:#ddd}\n"
    ".line{fill:none;stroke:currentColor;stroke-width:1.8;stroke-linejoin:round}\n"
    ".mark{fill:currentColor;stroke:#fff;stroke-width:.8}.bar{fill:currentColor}\n"
    ".halo{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}\n"
    ".s0{color:#0072b2}.s1{color:#d55e00}.s2{color:#009e73}.s3{color:#cc79a7}\n"
    ".s4{color:#e69f00}.s5{color:#56b4e9}.s6{color:#222}\n"
    "@media(prefers-color-scheme:dark){text{fill:#e8e8e8}.back{fill:#161616}.axis{stroke:#999}\n"
    ".grid{stroke:#383838}.mark,.halo{stroke:#161616}.s0{color:#3d9fe0}.s6{color:#e8e8e8}}\n"
    "</style>\n";

/* The style of a series: its colour, and dashes and markers that differ where colours repeat. */
static int style_of(int series, int colour) {
    return (colour ? series : series + series / FIGURE_STYLES) % FIGURE_STYLES;
}

static const char *dashes_of(int series) {
    static const char *const dashes[FIGURE_STYLES] = {"none", "7 3",     "2 3", "9 3 2 3",
                                                      "12 4", "4 2 1 2", "1 4"};
    return dashes[style_of(series, 0)];
}

/* A marker around a point, with a text for pointers and readers where there is one: circle, square,
   triangle, diamond, triangle on its tip, bar, upright bar. */
static void put_marker(FILE *f, int series, double x, double y, const char *text) {
    static const char *const shapes[FIGURE_STYLES] = {"m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
                                                      "m-3.6-3.6h7.2v7.2h-7.2z",
                                                      "m0-5l4.6 8.4h-9.2z",
                                                      "m0-5.2l5.2 5.2l-5.2 5.2l-5.2-5.2z",
                                                      "m0 5l4.6-8.4h-9.2z",
                                                      "m-5.5-2h11v4h-11z",
                                                      "m-2-5.5h4v11h-4z"};
    fprintf(f, "<path class=\"mark s%d\" d=\"M%.1f %.1f%s\"", style_of(series, 1), x, y,
            shapes[style_of(series, 0)]);
    if (!text) {
        fputs("/>\n", f);
        return;
    }
    fputs("><title>", f);
    put_xml(f, text, 200);
    fputs("</title></path>\n", f);
}

/* The frame of a panel: grid, ticks, names. */
static void put_axes(FILE *f, const figure_panel *p, const axis *x, const axis *y) {
    char text[32];
    for (int i = 0; i < y->ticks; i++) {
        const double at = axis_at(y, y->tick[i]);
        fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>\n", x->from, at, x->to);
        fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", x->from - 7,
                at + 4, tick_text(y, y->tick[i], text, sizeof text));
    }
    for (int i = 0; i < x->ticks; i++) {
        const double at = axis_at(x, x->tick[i]);
        fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>\n", at, y->from, y->to);
        fprintf(f, "<path class=\"axis\" d=\"M%.1f %.1fv5\"/>\n", at, y->from);
        fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", at,
                y->from + 19, tick_text(x, x->tick[i], text, sizeof text));
    }
    fprintf(f, "<path class=\"axis\" fill=\"none\" d=\"M%.1f %.1fV%.1fH%.1f\"/>\n", x->from, y->to,
            y->from, x->to);
    fprintf(f, "<text class=\"head\" x=\"%.1f\" y=\"%.1f\">", x->from, y->to - 10);
    put_xml(f, axis_name(p->y_name), FIGURE_LABEL);
    fprintf(f, "%s</text>\n<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">",
            y->log ? ", log scale" : "", (x->from + x->to) / 2, y->from + 38);
    put_xml(f, axis_name(p->x_name), FIGURE_LABEL);
    fprintf(f, "%s</text>\n", x->log ? ", log scale" : "");
}

/* Whether a number has a place on an axis; ranges of larger ones would overflow. */
static int is_finite(double value) {
    return fabs(value) < 1e300;
}

/* Whether a point can be drawn. */
static int is_drawn(const axis *a, double value) {
    return is_finite(value) && (!a->log || value > 0);
}

/* A curve, broken where a number is missing. Of many points on one column of pixels the lowest and
   the highest are drawn, in their order: the picture is the same and the file stays small. */
static void put_curve(FILE *f, const figure_series *s, int series, const axis *x, const axis *y) {
    int pen = 0;
    fprintf(f, "<path class=\"line s%d\" stroke-dasharray=\"%s\" d=\"", style_of(series, 1),
            dashes_of(series));
    for (int64_t i = 0, next; i < s->n; i = next) {
        next = i + 1;
        if (!is_drawn(x, s->x[i * s->stride]) || !is_drawn(y, s->y[i * s->stride])) {
            pen = 0;
            continue;
        }
        const double at = axis_at(x, s->x[i * s->stride]);
        int64_t low = i, high = i;
        while (next < s->n && is_drawn(x, s->x[next * s->stride]) &&
               is_drawn(y, s->y[next * s->stride]) &&
               fabs(axis_at(x, s->x[next * s->stride]) - at) < 0.5) {
            if (s->y[next * s->stride] < s->y[low * s->stride]) low = next;
            if (s->y[next * s->stride] > s->y[high * s->stride]) high = next;
            next++;
        }
        for (int q = 0; q < (low == high ? 1 : 2); q++) {
            const int64_t j = (low < high) == !q ? low : high;
            fprintf(f, "%c%.1f %.1f", pen ? 'L' : 'M', axis_at(x, s->x[j * s->stride]),
                    axis_at(y, s->y[j * s->stride]));
            pen = 1;
        }
    }
    fputs("\"/>\n", f);
}

/* A few markers on a curve, not at the same places as those of its neighbours. A single point is
   always marked: it has no line. */
static void put_curve_markers(FILE *f, const figure_series *s, int series, int all, const axis *x,
                              const axis *y) {
    const int64_t every = s->n / 6 + 1;
    if (all == 1 && s->n > 1) return;
    for (int64_t i = s->n > 1 ? series * every / all : 0; i < s->n; i += every)
        if (is_drawn(x, s->x[i * s->stride]) && is_drawn(y, s->y[i * s->stride]))
            put_marker(f, series, axis_at(x, s->x[i * s->stride]), axis_at(y, s->y[i * s->stride]),
                       NULL);
}

/* Bars from 0, with their numbers for pointers and readers. */
static void put_bars(FILE *f, const figure_series *s, const axis *x, const axis *y) {
    for (int64_t i = 0; i < s->n; i++) {
        if (!(s->y[i] > 0) || !is_drawn(y, s->y[i])) continue;
        if (!is_drawn(x, s->x[i]) || !is_drawn(x, s->x[i + 1])) continue;
        const double from = axis_at(x, s->x[i]), to = axis_at(x, s->x[i + 1]);
        const double top = axis_at(y, s->y[i]);
        fprintf(f,
                "<rect class=\"bar s0\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\">"
                "<title>%.3g to %.3g: %.0f</title></rect>\n",
                from + 0.5, top, to - from - 1, y->from - top, s->x[i], s->x[i + 1], s->y[i]);
    }
}

/* ---- labels of points: beside them, where no other label or point is */

typedef struct label_box {
    double x0, y0, x1, y1;
} label_box;

enum { LABEL_BOXES = 4096 };
typedef struct label_boxes {
    label_box box[LABEL_BOXES];
    int n;
} label_boxes;

static void add_box(label_boxes *all, double x0, double y0, double x1, double y1) {
    const label_box box = {x0, y0, x1, y1};
    if (all->n < LABEL_BOXES) all->box[all->n++] = box;
}

/* How much of a box others cover. */
static double covered(const label_boxes *all, const label_box *b) {
    double sum = 0;
    for (int i = 0; i < all->n; i++) {
        const label_box *o = &all->box[i];
        const double w = (o->x1 < b->x1 ? o->x1 : b->x1) - (o->x0 > b->x0 ? o->x0 : b->x0);
        const double h = (o->y1 < b->y1 ? o->y1 : b->y1) - (o->y0 > b->y0 ? o->y0 : b->y0);
        if (w > 0 && h > 0) sum += w * h;
    }
    return sum;
}

/* Adds what a line between two points covers, in small boxes. */
static void add_line(label_boxes *all, double x0, double y0, double x1, double y1) {
    const int steps = 1 + (int)(hypot(x1 - x0, y1 - y0) / 6);
    for (int i = 0; i <= steps; i++) {
        const double x = x0 + (x1 - x0) * i / steps, y = y0 + (y1 - y0) * i / steps;
        add_box(all, x - 2, y - 2, x + 2, y + 2);
    }
}

/* Puts a label at the first of six places that is free, or else at the least covered. */
static void put_label(FILE *f, label_boxes *all, const char *text, double x, double y,
                      const axis *across, const axis *up) {
    static const double place[6][2] = {{-0.5, -10}, {-0.5, 19}, {0, 4}, {-1, 4}, {-1, -8}, {0, 17}};
    const double width = 6.8 * (double)(strlen(text) < 24 ? strlen(text) : 24);
    double lowest = HUGE_VAL;
    label_box best = {0, 0, 0, 0};
    for (int i = 0; i < 6 && lowest > 0; i++) {
        const double side = place[i][0] < -0.9 ? -9 : place[i][0] < 0 ? 0 : 9;
        const double left = x + place[i][0] * width + side, base = y + place[i][1];
        const label_box b = {left, base - 10, left + width, base + 3};
        const double cost =
            covered(all, &b) +
            (b.x1 > across->to + FIGURE_RIGHT || b.x0 < across->from - 9 ? 1e6 : 0) +
            (b.y1 > up->from ? 1e6 : 0);
        if (cost < lowest) lowest = cost, best = b;
    }
    fprintf(f, "<text class=\"halo\" x=\"%.1f\" y=\"%.1f\">", best.x0, best.y1 - 3);
    put_xml(f, text, 24);
    fputs("</text>\n", f);
    add_box(all, best.x0, best.y0, best.x1, best.y1);
}

/* A point of a panel, and where the line to it begins. */
typedef struct drawn_point {
    const figure_series *s;
    int series, starts; /* starts: no line leads to it */
    double x, y, from_x, from_y;
    const char *label;
    char text[300];
} drawn_point;

/* Goes to the next point, from series *k, point *i on. 0: there are no more. */
static int next_point(const figure_panel *p, const axis *x, const axis *y, int *k, int64_t *i,
                      drawn_point *d) {
    for (; *k < p->n; ++*k, *i = 0) {
        const figure_series *s = &p->series[*k];
        for (; *i < s->n; ++*i) {
            const double vx = s->x[*i * s->stride], vy = s->y[*i * s->stride];
            if (!is_drawn(x, vx) || !is_drawn(y, vy)) continue;
            d->from_x = d->x, d->from_y = d->y;
            d->starts = *i == 0 || d->s != s;
            d->s = s, d->series = *k;
            d->x = axis_at(x, vx), d->y = axis_at(y, vy);
            d->label = s->label && s->label[*i] ? s->label[*i] : "";
            snprintf(d->text, sizeof d->text, "%.200s%s%.6g, %.6g", d->label, *d->label ? ": " : "",
                     vx, vy);
            ++*i;
            return 1;
        }
    }
    return 0;
}

/* Markers of all points, then their labels. */
static void put_points(FILE *f, const figure_panel *p, const axis *x, const axis *y) {
    static label_boxes all; /* too large for some stacks */
    drawn_point d;
    int k = 0;
    int64_t i = 0;
    memset(&d, 0, sizeof d);
    all.n = 0;
    while (next_point(p, x, y, &k, &i, &d)) {
        put_marker(f, d.series, d.x, d.y, d.text);
        add_box(&all, d.x - 5, d.y - 5, d.x + 5, d.y + 5);
        if (!d.starts) add_line(&all, d.from_x, d.from_y, d.x, d.y);
    }
    for (k = 0, i = 0; next_point(p, x, y, &k, &i, &d);)
        if (*d.label) put_label(f, &all, d.label, d.x, d.y, x, y);
}

/* ---- panels */

/* The smallest and the largest number that series have on an axis; edges of bars are one more. */
static void find_range(const figure_panel *p, int of_x, double *low, double *high) {
    *low = HUGE_VAL, *high = -HUGE_VAL;
    for (int k = 0; k < p->n; k++) {
        const figure_series *s = &p->series[k];
        const double *v = of_x ? s->x : s->y;
        for (int64_t i = 0; i < s->n + (of_x && p->kind == FIGURE_BARS); i++) {
            const double value = v[i * s->stride];
            if (!is_finite(value)) continue;
            if (value < *low) *low = value;
            if (value > *high) *high = value;
        }
    }
    if (!of_x && p->kind == FIGURE_BARS) *low = 0, *high *= 1.04; /* air above the bars */
}

/* A panel whose upper left corner is at (left, top). */
static void put_panel(FILE *f, const figure_panel *p, double left, double top, double width,
                      double height) {
    double low, high;
    const int bars = p->kind == FIGURE_BARS;
    find_range(p, 1, &low, &high);
    axis x = make_axis(low, high, p->kind != FIGURE_LINES, p->kind != FIGURE_POINTS, 0);
    find_range(p, 0, &low, &high);
    axis y = make_axis(low, high, p->kind == FIGURE_LINES, 0, bars);
    x.from = left + FIGURE_LEFT, x.to = left + width - FIGURE_RIGHT;
    y.from = top + height - FIGURE_BOTTOM, y.to = top + FIGURE_TOP;
    put_axes(f, p, &x, &y);
    for (int k = 0; k < p->n; k++) {
        if (bars) put_bars(f, &p->series[k], &x, &y);
        if (!bars) put_curve(f, &p->series[k], k, &x, &y);
        if (p->kind == FIGURE_LINES) put_curve_markers(f, &p->series[k], k, p->n, &x, &y);
    }
    if (p->kind == FIGURE_POINTS) put_points(f, p, &x, &y);
}

/* The names of the series, each with its line and marker; y: of the first line. Returns the height
   of all lines. f NULL: only that. */
static double put_legend(FILE *f, const figure_panel *p, double width, double y) {
    double x = FIGURE_RIGHT, height = 20;
    if (p->n < 2) return 0;
    for (int k = 0; k < p->n; k++) {
        const char *name = p->series[k].name ? p->series[k].name : "";
        const size_t n = strlen(name) < FIGURE_LABEL ? strlen(name) : FIGURE_LABEL;
        const double room = 56 + 6.8 * (double)n;
        if (x + room > width && x > FIGURE_RIGHT) x = FIGURE_RIGHT, height += 20;
        if (f) {
            const double at = y + height - 20;
            fprintf(f, "<path class=\"line s%d\" stroke-dasharray=\"%s\" d=\"M%.1f %.1fh32\"/>\n",
                    style_of(k, 1), dashes_of(k), x, at);
            put_marker(f, k, x + 16, at, NULL);
            fprintf(f, "<text x=\"%.1f\" y=\"%.1f\">", x + 40, at + 4);
            put_xml(f, name, FIGURE_LABEL);
            fputs("</text>\n", f);
        }
        x += room;
    }
    return height + 6;
}

/* The first and the last point of a series that have both numbers. */
static void put_ends(FILE *f, const figure_series *s) {
    int64_t from = 0, to = s->n - 1;
    while (from < s->n && !(is_finite(s->x[from * s->stride]) && is_finite(s->y[from * s->stride])))
        from++;
    if (from == s->n) return;
    while (!(is_finite(s->x[to * s->stride]) && is_finite(s->y[to * s->stride]))) to--;
    fprintf(f, ", from %.6g at %.6g to %.6g at %.6g", s->y[from * s->stride],
            s->x[from * s->stride], s->y[to * s->stride], s->x[to * s->stride]);
}

/* What the figure shows, in words, for those who cannot see it: of each series its last or best
   numbers. */
static void put_description(FILE *f, const figure *fig) {
    fputs("<desc>", f);
    for (int q = 0; q < fig->panels; q++) {
        const figure_panel *p = &fig->panel[q];
        put_xml(f, axis_name(p->y_name), FIGURE_LABEL);
        fputs(" over ", f);
        put_xml(f, axis_name(p->x_name), FIGURE_LABEL);
        for (int k = 0; k < p->n; k++) {
            const figure_series *s = &p->series[k];
            fputs(k ? "; " : ": ", f);
            if (s->name) put_xml(f, s->name, FIGURE_LABEL);
            fprintf(f, "%s%lld %s", s->name ? ", " : "", (long long)s->n,
                    p->kind == FIGURE_BARS ? "bars" : "points");
            if (p->kind != FIGURE_BARS) put_ends(f, s);
        }
        fputs(". ", f);
    }
    fputs("</desc>\n", f);
}

/* All of the file: one large panel, or smaller ones in two columns. */
static void put_figure_svg(FILE *f, const figure *fig) {
    const int columns = fig->panels > 1 ? 2 : 1, rows = (fig->panels + columns - 1) / columns;
    const double width = columns > 1 ? 960 : 720, panel = width / columns;
    const double height = columns > 1 ? 280 : 420;
    const double top = 42 + put_legend(NULL, fig->panel, width, 0);
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 %.0f %.0f\" "
            "width=\"%.0f\" height=\"%.0f\">\n<title>",
            width, top + height * rows, width, top + height * rows);
    put_xml(f, fig->title, 200);
    fputs("</title>\n", f);
    put_description(f, fig);
    fputs(figure_style, f);
    fprintf(f, "<rect class=\"back\" width=\"100%%\" height=\"100%%\"/>\n");
    fprintf(f, "<text class=\"title\" x=\"%d\" y=\"28\">", FIGURE_RIGHT);
    put_xml(f, fig->title, columns > 1 ? 100 : 76);
    fputs("</text>\n", f);
    put_legend(f, fig->panel, width, 52);
    for (int q = 0; q < fig->panels; q++)
        put_panel(f, &fig->panel[q], panel * (q % columns), top + height * (q / columns), panel,
                  height);
    fputs("</svg>\n", f);
}

/* Writes a figure: whole, or not at all. */
static dlrn_status draw_figure(dlrn_context *ctx, const char *path, const figure *fig) {
    page text;
    dlrn_status s = page_open(ctx, &text);
    if (s != DLRN_OK) return s;
    put_figure_svg(text.f, fig);
    s = page_end(ctx, &text);
    if (s == DLRN_OK) s = dlrn_file_write(ctx, path, text.text, text.size);
    page_free(&text);
    return s;
}

/* ---- frontiers */

/* By series, in the order of their first points, then by x; what has no x comes last. */
static int point_is_after(const frontier_point *a, int rank_a, const frontier_point *b,
                          int rank_b) {
    if (rank_a != rank_b) return rank_a > rank_b;
    return a->x > b->x || (!is_finite(a->x) && is_finite(b->x));
}

static int same_series(const frontier_point *a, const frontier_point *b) {
    return a->series == b->series || (a->series && b->series && !strcmp(a->series, b->series));
}

/* The first point of a point's series. */
static int series_rank(const frontier_point *points, int i) {
    int first = 0;
    while (!same_series(&points[first], &points[i])) first++;
    return first;
}

/* A panel of points, and what it is made of; freed with frontier_free. */
typedef struct frontier {
    double *xy;         /* [2][n] sorted copies */
    const char **label; /* [n]                  */
    figure_series *series;
    int *order; /* [n] */
    figure_panel panel;
} frontier;

static void frontier_free(dlrn_context *ctx, frontier *f) {
    dlrn_free(ctx, f->order);
    dlrn_free(ctx, f->series);
    dlrn_free(ctx, (void *)f->label);
    dlrn_free(ctx, f->xy);
}

/* Numbers of points in order. They are few: by insertion. */
static void sort_points(const frontier_point *points, int n, int *order) {
    for (int i = 0; i < n; i++) {
        const int rank = series_rank(points, i);
        int at = i;
        for (; at > 0; at--) {
            const int before = order[at - 1];
            if (!point_is_after(&points[before], series_rank(points, before), &points[i], rank))
                break;
            order[at] = before;
        }
        order[at] = i;
    }
}

/* Makes a panel of points; names are keys, which axis_name translates. All are borrowed. */
static dlrn_status frontier_open(dlrn_context *ctx, const char *x_name, const char *y_name,
                                 const frontier_point *points, int n, frontier *f) {
    memset(f, 0, sizeof *f);
    f->xy = (double *)dlrn_alloc(ctx, 2 * n, sizeof *f->xy);
    f->label = f->xy ? (const char **)dlrn_alloc(ctx, n, sizeof *f->label) : NULL;
    f->series = f->label ? (figure_series *)dlrn_alloc(ctx, n, sizeof *f->series) : NULL;
    f->order = f->series ? (int *)dlrn_alloc(ctx, n, sizeof *f->order) : NULL;
    if (!f->order) return DLRN_ERR_MEMORY;
    figure_panel *panel = &f->panel;
    panel->x_name = x_name, panel->y_name = y_name;
    panel->kind = FIGURE_POINTS;
    panel->series = f->series;
    sort_points(points, n, f->order);
    for (int i = 0; i < n; i++) {
        const frontier_point *p = &points[f->order[i]];
        f->xy[i] = p->x, f->xy[n + i] = p->y, f->label[i] = p->label;
        if (!i || !same_series(p, &points[f->order[i - 1]])) {
            const figure_series s = {p->series, f->xy + i, f->xy + n + i, 0, 1, f->label + i};
            f->series[panel->n++] = s;
        }
        f->series[panel->n - 1].n++;
    }
    return DLRN_OK;
}

/* Writes a figure of frontiers to an SVG file, with a panel for each of y_name [panels]; points
   [panels][n]. */
static dlrn_status draw_frontiers(dlrn_context *ctx, const char *path, const char *title,
                                  const char *x_name, const char *const *y_name, int panels,
                                  const frontier_point *points, int n) {
    frontier all[FIGURE_PANELS];
    figure_panel panel[FIGURE_PANELS];
    const figure fig = {title, panel, panels};
    dlrn_status s = DLRN_OK;
    memset(all, 0, sizeof all);
    for (int q = 0; q < panels && s == DLRN_OK; q++) {
        s = frontier_open(ctx, x_name, y_name[q], points + (int64_t)q * n, n, &all[q]);
        panel[q] = all[q].panel;
    }
    if (s == DLRN_OK) s = draw_figure(ctx, path, &fig);
    for (int q = 0; q < panels; q++) frontier_free(ctx, &all[q]);
    return s;
}

/* The same with one panel. x_name, y_name: keys, such as "l0" and "variance_explained". */
static dlrn_status draw_frontier(dlrn_context *ctx, const char *path, const char *title,
                                 const char *x_name, const char *y_name,
                                 const frontier_point *points, int n) {
    return draw_frontiers(ctx, path, title, x_name, &y_name, 1, points, n);
}
